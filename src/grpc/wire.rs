//! bpfman's gRPC interface, generated from `bpfman.proto` at build time.
#![allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "generated code; its documentation is the proto file"
)]

tonic::include_proto!("bpfman.v1");

/// The descriptors, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bpfman.bin"));

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;
    use prost_types::field_descriptor_proto::{Label, Type};
    use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

    use crate::grpc::wire::DESCRIPTORS;

    fn last(path: &str) -> String {
        path.rsplit('.').next().unwrap().to_lowercase()
    }

    fn scalar(field: &FieldDescriptorProto) -> String {
        match field.r#type() {
            Type::Message | Type::Enum => last(field.type_name()),
            other => format!("{other:?}").to_lowercase(),
        }
    }

    fn describe(message: &DescriptorProto, lines: &mut BTreeSet<String>) {
        for field in &message.field {
            let entry = message.nested_type.iter().find(|nested| {
                nested.options.as_ref().is_some_and(|options| options.map_entry())
                    && last(field.type_name()) == last(nested.name())
            });
            let kind = match entry {
                Some(entry) => format!("map<{},{}>", scalar(&entry.field[0]), scalar(&entry.field[1])),
                None if field.label() == Label::Repeated => format!("{} repeated", scalar(field)),
                None if field.proto3_optional() => format!("{} optional", scalar(field)),
                None => scalar(field),
            };
            lines.insert(format!("{}.{} {} {kind}", message.name().to_lowercase(), field.name(), field.number()));
        }
        for nested in &message.nested_type {
            if !nested.options.as_ref().is_some_and(|options| options.map_entry()) {
                describe(nested, lines);
            }
        }
    }

    /// The expected list was taken from bpfman's own crate, not from our proto file.
    #[test]
    fn names_numbers_and_types_match_bpfman() {
        let theirs: BTreeSet<String> = include_str!("../../tests/data/wire/bpfman.v1.txt")
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(str::to_owned)
            .collect();
        let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
        let file = set.file.iter().find(|file| file.package() == "bpfman.v1").unwrap();
        let mut ours = BTreeSet::new();
        for message in &file.message_type {
            describe(message, &mut ours);
        }
        for values in &file.enum_type {
            for value in &values.value {
                ours.insert(format!("{}.{} {}", values.name().to_lowercase(), value.name(), value.number()));
            }
        }
        for method in file.service.iter().flat_map(|service| &service.method) {
            ours.insert(format!("rpc {} {} {}", method.name(), last(method.input_type()), last(method.output_type())));
        }
        assert_eq!(ours.difference(&theirs).collect::<Vec<_>>(), Vec::<&String>::new(), "only ours");
        assert_eq!(theirs.difference(&ours).collect::<Vec<_>>(), Vec::<&String>::new(), "only bpfman's");
        assert!(ours.len() > 100);
    }
}
