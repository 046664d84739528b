//! A program of aya 0.13: it loads tests/bpf/client.bpf.c, attaches, makes traffic, and prints what the programs have seen.

use aya::programs::XdpFlags;
use aya_13 as aya;

fn attach_xdp(program: &mut Xdp) -> Result<(), Failure> {
    program.attach("lo", XdpFlags::default())?;
    Ok(())
}

include!("../aya.rs");
