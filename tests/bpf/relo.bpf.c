// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// CO-RE without a kernel: this object's structures against those of relo_target.bpf.c, which has the same members elsewhere.
// Every program answers one question in its first instruction that carries a relocation.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct nested {
	int deep;
} __attribute__((preserve_access_index));

struct subject {
	int number;
	unsigned short narrow;
	signed char sign;
	struct nested in;
	int list[4];
	unsigned int bits : 3;
	struct subject *next;
	int gone;
	long shrunk;
} __attribute__((preserve_access_index));

enum choice { FIRST_CHOICE = 1, SECOND_CHOICE = 2 };

// relo_target.bpf.c has two structures of this name, by way of flavours, and they differ.
struct twofold {
	int member;
} __attribute__((preserve_access_index));

#define ASK(name, expression) \
	SEC("socket") unsigned long name(struct subject *s) { return (unsigned long)(expression); }

ASK(load_number, s->number)
ASK(load_narrow, s->narrow)
ASK(load_nested, s->in.deep)
ASK(load_element, s->list[2])
ASK(load_next, s->next)
ASK(load_gone, s->gone)
ASK(load_shrunk, s->shrunk)
ASK(size_narrow, bpf_core_field_size(s->narrow))
ASK(signed_sign, __builtin_preserve_field_info(s->sign, BPF_FIELD_SIGNED))
ASK(offset_bits, __builtin_preserve_field_info(s->bits, BPF_FIELD_BYTE_OFFSET))
ASK(left_bits, __builtin_preserve_field_info(s->bits, BPF_FIELD_LSHIFT_U64))
ASK(right_bits, __builtin_preserve_field_info(s->bits, BPF_FIELD_RSHIFT_U64))
ASK(exists_gone, bpf_core_field_exists(s->gone))
ASK(exists_number, bpf_core_field_exists(s->number))
ASK(exists_type, bpf_core_type_exists(struct subject))
ASK(size_type, bpf_core_type_size(struct subject))
ASK(value_first, bpf_core_enum_value(enum choice, FIRST_CHOICE))
ASK(value_second, bpf_core_enum_value_exists(enum choice, SECOND_CHOICE))
ASK(local_id, bpf_core_type_id_local(struct subject))
ASK(load_twofold, ((struct twofold *)s)->member)

char _license[] SEC("license") = "Dual BSD/GPL";
