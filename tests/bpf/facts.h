// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// Facts about the container that bpfman-hook fills in where an object declares them. 0 means "match nothing".
#ifndef FACTS_H
#define FACTS_H

const volatile __u64 bpfman_cgroup_id;
const volatile __u32 bpfman_init_pid;
const volatile __u64 bpfman_mntns;
const volatile __u64 bpfman_pidns;
const volatile __u64 bpfman_netns;
const volatile __u64 bpfman_userns;
const volatile char bpfman_container_id[256];

#endif
