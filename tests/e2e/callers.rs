//! What the hook inherits from its caller makes no difference.

use std::os::unix::fs::PermissionsExt;

use crate::support::bundle::Bundle;
use crate::world::World;

crate::cases![signals_and_umask,];

fn signals_and_umask(world: &mut World) {
    let script = r#"trap "" CHLD; umask 0777; exec "$@""#;
    let bundle = Bundle::new(&world.lab, "inherited").ask("delegate", "maps");
    let bundle = bundle.hook_through("createRuntime", script).hook_through("poststop", script);
    let bundle = bundle.script("echo ready; read go").write();
    let running = world.start(&bundle);
    assert_eq!(world.lab.records().len(), 1);
    let mode = std::fs::metadata(world.lab.path("root/run/bpfman-hook")).expect("our directory").permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    running.finish();
}
