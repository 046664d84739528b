//! Kernel functions that programs call by their BTF, as far as they reach beyond a container.
//!
//! No program of an image may call any kfunc, so this list does not decide what an image may do: it says what each reaches, in
//! refusals, and which of them make a BPF token's scope the host's. Which program types they are registered for differs from
//! kernel to kernel and is to be probed.

use super::Reach::{self, Cgroups, Connections, Host, KernelAddresses, KernelMemory, OtherNetns, Processes};

/// Names as the kernel's BTF has them. Those that end in `_impl` lost that ending in Linux 7.0; both are listed.
pub(super) const KFUNCS: &[(&str, Reach)] = &[
    ("bpf_rdonly_cast", KernelMemory),
    ("bpf_probe_read_kernel_dynptr", KernelMemory),
    ("bpf_probe_read_kernel_str_dynptr", KernelMemory),
    ("bpf_get_kmem_cache", KernelMemory),
    ("bpf_iter_kmem_cache_new", KernelMemory),
    ("bpf_stream_print_stack", KernelAddresses),
    ("bpf_stream_vprintk", KernelMemory),
    ("bpf_stream_vprintk_impl", KernelMemory),
    ("bpf_dynptr_from_file", KernelMemory),
    ("bpf_probe_read_user_dynptr", Processes),
    ("bpf_probe_read_user_str_dynptr", Processes),
    ("bpf_copy_from_user_dynptr", Processes),
    ("bpf_copy_from_user_str", Processes),
    ("bpf_copy_from_user_str_dynptr", Processes),
    ("bpf_copy_from_user_task_dynptr", Processes),
    ("bpf_copy_from_user_task_str", Processes),
    ("bpf_copy_from_user_task_str_dynptr", Processes),
    ("bpf_task_from_pid", Processes),
    ("bpf_task_from_vpid", Processes),
    ("bpf_send_signal_task", Processes),
    ("bpf_iter_task_new", Processes),
    ("bpf_iter_task_vma_new", Processes),
    ("bpf_iter_css_task_new", Processes),
    ("bpf_task_work_schedule_resume", Processes),
    ("bpf_task_work_schedule_resume_impl", Processes),
    ("bpf_task_work_schedule_signal", Processes),
    ("bpf_task_work_schedule_signal_impl", Processes),
    ("bpf_cgroup_from_id", Cgroups),
    ("bpf_task_under_cgroup", Cgroups),
    ("bpf_iter_css_new", Cgroups),
    ("bpf_get_root_mem_cgroup", Cgroups),
    ("bpf_get_mem_cgroup", Cgroups),
    ("bpf_xdp_ct_alloc", Connections),
    ("bpf_xdp_ct_lookup", Connections),
    ("bpf_skb_ct_alloc", Connections),
    ("bpf_skb_ct_lookup", Connections),
    ("bpf_ct_insert_entry", Connections),
    ("bpf_ct_set_nat_info", Connections),
    // The namespace's id is a field of the options in its second argument.
    ("bpf_xdp_get_xfrm_state", OtherNetns { netns: None }),
    ("bpf_skb_get_xfrm_info", Host),
    ("bpf_skb_set_xfrm_info", Host),
    ("bpf_iter_dmabuf_new", Host),
    ("bpf_lookup_user_key", Host),
    ("bpf_lookup_system_key", Host),
    ("crash_kexec", Host),
];

/// Kfuncs of a subsystem that is the host's as a whole go by the beginning of their names.
pub(super) const FAMILIES: &[(&str, Reach)] =
    &[("scx_bpf_", Host), ("hid_bpf_", Host), ("bpf_mem_cgroup_", Cgroups), ("bpf_wakeup_sources_", Host)];
