//! What tools such as grpcurl query first: health, and the description of our services.

use prost::Message;
use prost_types::FileDescriptorProto;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::world::{World, channel, run};

#[test]
fn the_service_describes_itself_and_is_healthy() {
    let world = World::new();
    let _service = world.start(&[]);
    run(async {
        let channel = channel(&world.socket).await.unwrap();
        let mut health = HealthClient::new(channel.clone());
        for service in ["", "bpfman.v1.Bpfman"] {
            let answer = health.check(HealthCheckRequest { service: service.to_owned() }).await.unwrap();
            assert_eq!(answer.into_inner().status, 1, "{service:?} is SERVING");
        }

        let mut reflection = ServerReflectionClient::new(channel);
        let ask = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
        let questions = [
            ask(MessageRequest::ListServices(String::new())),
            ask(MessageRequest::FileContainingSymbol("bpfman.v1.Bpfman".to_owned())),
        ];
        let mut answers =
            reflection.server_reflection_info(tonic::codegen::tokio_stream::iter(questions)).await.unwrap().into_inner();
        let listed = answers.message().await.unwrap().unwrap().message_response.unwrap();
        let MessageResponse::ListServicesResponse(listed) = listed else { panic!("{listed:?}") };
        let mut names: Vec<_> = listed.service.into_iter().map(|service| service.name).collect();
        names.sort();
        assert_eq!(names, ["bpfman.v1.Bpfman", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"]);
        let described = answers.message().await.unwrap().unwrap().message_response.unwrap();
        let MessageResponse::FileDescriptorResponse(files) = described else { panic!("{described:?}") };
        let file = FileDescriptorProto::decode(files.file_descriptor_proto[0].as_slice()).unwrap();
        let methods: Vec<_> = file.service[0].method.iter().map(|method| method.name()).collect();
        assert_eq!(methods, ["Load", "Unload", "Attach", "Detach", "List", "PullBytecode", "Get"]);
    });
}
