//! What a container runtime says of a container: the Container Runtime Interface, which containerd and CRI-O have.
//!
//! Of its messages (api.proto of k8s.io/cri-api, `runtime.v1`) so much as is asked for and read here. A field that is not
//! listed is skipped.

use std::collections::HashMap;
use std::path::Path;

use prost::Message;

use super::grpc::{Connection, NOT_FOUND, NoAnswer};
use super::{Answer, Names};

/// The runtime, connected.
pub(super) struct Runtime(Connection);

impl Runtime {
    /// Connects.
    ///
    /// # Errors
    ///
    /// When nobody listens there, or who does speaks no HTTP/2.
    pub(super) async fn connect(socket: &Path) -> Result<Runtime, NoAnswer> {
        Connection::open(socket).await.map(Runtime)
    }

    /// The names of a container or of a pod's sandbox, by its id.
    ///
    /// # Errors
    ///
    /// When there is no answer.
    pub(super) async fn names(&self, id: &str) -> Result<Answer, NoAnswer> {
        match self.container(id).await? {
            None => Ok(self.pod(id).await?.map_or(Answer::Absent, |pod| Answer::Names(names(pod, None)))),
            Some(container) => {
                let pod = self.pod(&container.pod_sandbox_id).await?.unwrap_or_default();
                let container = self.with_image(container).await?;
                Ok(Answer::Names(names(pod, Some(container))))
            }
        }
    }

    async fn container(&self, id: &str) -> Result<Option<Container>, NoAnswer> {
        let question = ListContainersRequest { filter: Some(Filter { id: id.to_owned() }) };
        let answer: ListContainersResponse = self.ask("ListContainers", &question).await?;
        Ok(answer.containers.into_iter().find(|container| container.id == id))
    }

    async fn pod(&self, id: &str) -> Result<Option<PodSandbox>, NoAnswer> {
        let question = ListPodSandboxRequest { filter: Some(Filter { id: id.to_owned() }) };
        let answer: ListPodSandboxResponse = self.ask("ListPodSandbox", &question).await?;
        Ok(answer.items.into_iter().find(|pod| pod.id == id))
    }

    /// In lists an image is often a digest only; the status has its name.
    async fn with_image(&self, mut container: Container) -> Result<Container, NoAnswer> {
        let question = ContainerStatusRequest { container_id: container.id.clone() };
        match self.ask::<_, ContainerStatusResponse>("ContainerStatus", &question).await {
            Ok(ContainerStatusResponse { status: Some(status) }) => container.image = status.image.or(container.image),
            // It may end between two questions.
            Ok(_) | Err(NoAnswer::Status { code: NOT_FOUND, .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(container)
    }

    async fn ask<Q: Message, A: Message + Default>(&self, method: &str, question: &Q) -> Result<A, NoAnswer> {
        self.0.ask(&format!("/runtime.v1.RuntimeService/{method}"), question).await
    }
}

/// A label of the kubelet's, on containers: where a sandbox is gone already, it tells what the sandbox would.
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_NAME: &str = "io.kubernetes.pod.name";

fn names(pod: PodSandbox, container: Option<Container>) -> Names {
    let of_container = |label: &str| container.as_ref().and_then(|container| container.labels.get(label).cloned());
    let of_pod = pod.metadata.unwrap_or_default();
    let or = |text: String, label| if text.is_empty() { of_container(label).unwrap_or_default() } else { text };
    Names {
        namespace: or(of_pod.namespace, POD_NAMESPACE),
        pod: or(of_pod.name, POD_NAME),
        labels: pod.labels.into_iter().collect(),
        container: container.as_ref().and_then(|container| Some(container.metadata.as_ref()?.name.clone())),
        image: container.and_then(|container| container.image).and_then(ImageSpec::name),
    }
}

impl ImageSpec {
    /// As whoever started the container wrote it, where the runtime keeps that.
    fn name(self) -> Option<String> {
        [self.user_specified_image, self.image].into_iter().find(|name| !name.is_empty())
    }
}

/// `ContainerFilter` and `PodSandboxFilter` begin alike.
#[derive(Clone, PartialEq, Message)]
struct Filter {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct ListContainersRequest {
    #[prost(message, optional, tag = "1")]
    filter: Option<Filter>,
}

#[derive(Clone, PartialEq, Message)]
struct ListContainersResponse {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Container>,
}

#[derive(Clone, PartialEq, Message)]
struct Container {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "3")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "4")]
    image: Option<ImageSpec>,
    #[prost(map = "string, string", tag = "8")]
    labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
    #[prost(string, tag = "18")]
    user_specified_image: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerStatusRequest {
    #[prost(string, tag = "1")]
    container_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<ContainerStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerStatus {
    #[prost(message, optional, tag = "8")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct ListPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    filter: Option<Filter>,
}

#[derive(Clone, PartialEq, Message)]
struct ListPodSandboxResponse {
    #[prost(message, repeated, tag = "1")]
    items: Vec<PodSandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandbox {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "2")]
    metadata: Option<PodSandboxMetadata>,
    #[prost(map = "string, string", tag = "5")]
    labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "3")]
    namespace: String,
}
