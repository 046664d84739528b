//! The most important cases, with crun and with containerd 1.7, whose NRI is 0.6.
//!
//! A machine with hybrid cgroups hides version 2 from crun, so none of these cases uses cgroup programs.

use crate::boot::a_booting_node_starts_no_annotated_pod_without_hooks;
use crate::lifetimes::{
    a_pod_keeps_running_while_the_plugin_is_replaced, containerd_restarts_under_a_pod,
    the_pods_program_outlives_a_restart_in_place,
};
use crate::node::Setup;
use crate::pods::{a_pod_with_a_user_namespace_gets_a_token, an_annotation_can_name_a_container};
use crate::protocol::{a_long_response_is_split_into_short_frames, a_plugin_registers_and_gets_requests};
use crate::refusals::{
    a_bad_annotation_is_refused_when_the_container_is_created, the_policy_refuses_when_the_container_is_created,
};

crate::cases!(
    ON_CRUN, Setup { containerd: 2, runtime: "crun" }, with_crun:
    an_annotation_can_name_a_container,
    a_pod_with_a_user_namespace_gets_a_token,
    the_pods_program_outlives_a_restart_in_place,
    the_policy_refuses_when_the_container_is_created,
);

crate::cases!(
    ON_1_7, Setup { containerd: 1, runtime: "runc" }, on_containerd_1_7:
    an_annotation_can_name_a_container,
    a_pod_with_a_user_namespace_gets_a_token,
    a_pod_keeps_running_while_the_plugin_is_replaced,
    containerd_restarts_under_a_pod,
    a_bad_annotation_is_refused_when_the_container_is_created,
    a_plugin_registers_and_gets_requests,
    a_long_response_is_split_into_short_frames,
    a_booting_node_starts_no_annotated_pod_without_hooks,
);
