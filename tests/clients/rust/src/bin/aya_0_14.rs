//! A program of aya 0.14: it loads tests/bpf/client.bpf.c, attaches, makes traffic, and prints what the programs have seen.

use aya::programs::XdpMode;
use aya_14 as aya;

fn attach_xdp(program: &mut Xdp) -> Result<(), Failure> {
    program.attach("lo", XdpMode::default())?;
    Ok(())
}

include!("../aya.rs");
