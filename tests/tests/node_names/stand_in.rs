//! A stand-in for a container runtime: gRPC over HTTP/2 at a socket, answered from a list, or as badly as it is told to.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use h2::SendStream;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use prost::Message;
use prost::bytes::{BufMut, Bytes, BytesMut};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

use super::messages::{
    Container, ContainerStatus, ContainerStatusRequest, ContainerStatusResponse, ImageSpec, ListContainersResponse,
    ListPodSandboxResponse, ListRequest, Metadata, PodSandbox, PodSandboxMetadata,
};

/// How it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As a runtime does.
    Right,
    /// Not at all.
    Silent,
    /// With a status of gRPC.
    Refusing,
    /// With bytes that are no message.
    Nonsense,
    /// With an answer that does not end.
    Endless,
    /// With the end of the connection.
    Closing,
}

/// What it knows of a container.
#[derive(Clone, Debug)]
pub struct Known {
    pub id: String,
    pub sandbox: String,
    pub name: String,
    pub image: String,
    pub pod: String,
    pub namespace: String,
    pub labels: Vec<(String, String)>,
}

#[derive(Debug)]
struct Content {
    containers: Mutex<Vec<Known>>,
    manner: Mutex<Manner>,
    asked: AtomicUsize,
}

/// The runtime. When it is dropped, nobody listens any more.
#[derive(Debug)]
pub struct StandIn {
    content: Arc<Content>,
    socket: PathBuf,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl StandIn {
    /// Listens at a path.
    pub fn at(socket: &Path, containers: Vec<Known>) -> StandIn {
        let content = Arc::new(Content {
            containers: Mutex::new(containers),
            manner: Mutex::new(Manner::Right),
            asked: AtomicUsize::new(0),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (end, ended) = oneshot::channel();
        let (path, shared) = (socket.to_owned(), Arc::clone(&content));
        // Before anybody can be asked: who connects meanwhile waits.
        let listener = runtime.block_on(async { UnixListener::bind(path).unwrap() });
        let thread = std::thread::spawn(move || {
            runtime.block_on(async move {
                tokio::spawn(accept(listener, shared));
                let _ = ended.await;
            });
        });
        StandIn { content, socket: socket.to_owned(), end: Some(end), thread: Some(thread) }
    }

    /// How it answers from now on.
    pub fn is(&self, manner: Manner) {
        *self.content.manner.lock().unwrap() = manner;
    }

    /// How many questions came.
    pub fn asked(&self) -> usize {
        self.content.asked.load(Ordering::SeqCst)
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = self.end.take().unwrap().send(());
        let _ = self.thread.take().unwrap().join();
        let _ = fs::remove_file(&self.socket);
    }
}

async fn accept(listener: UnixListener, content: Arc<Content>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(connection(stream, Arc::clone(&content)));
    }
}

async fn connection(stream: UnixStream, content: Arc<Content>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        content.asked.fetch_add(1, Ordering::SeqCst);
        let manner = *content.manner.lock().unwrap();
        if manner == Manner::Closing {
            return;
        }
        tokio::spawn(exchange(request, respond, Arc::clone(&content), manner));
    }
}

async fn exchange(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    content: Arc<Content>,
    manner: Manner,
) {
    let (head, mut body) = request.into_parts();
    let mut question = BytesMut::new();
    while let Some(Ok(chunk)) = body.data().await {
        question.extend_from_slice(&chunk);
    }
    assert_eq!(head.headers["content-type"], "application/grpc");
    assert_eq!(head.headers["te"], "trailers");
    assert_eq!(
        (question[0], question[1..5].to_vec()),
        (0, u32::try_from(question.len() - 5).unwrap().to_be_bytes().to_vec())
    );
    let ok = Response::builder().header("content-type", "application/grpc");
    match manner {
        Manner::Silent => std::future::pending::<()>().await,
        Manner::Refusing => {
            let only = ok.header("grpc-status", "14").header("grpc-message", "not yet").body(()).unwrap();
            let _ = respond.send_response(only, true);
        }
        Manner::Nonsense => {
            let mut stream = respond.send_response(ok.body(()).unwrap(), false).unwrap();
            finish(&mut stream, Bytes::from_static(b"\0\0\0\0\x05\xff\xff\xff\xff\xff"));
        }
        Manner::Endless => {
            let mut stream = respond.send_response(ok.body(()).unwrap(), false).unwrap();
            // What is not taken is buffered here: no more is made than was taken.
            loop {
                stream.reserve_capacity(1 << 16);
                match std::future::poll_fn(|context| stream.poll_capacity(context)).await {
                    Some(Ok(room)) if stream.send_data(Bytes::from(vec![0; room]), false).is_ok() => {}
                    _ => return,
                }
            }
        }
        Manner::Right | Manner::Closing => {
            let known = content.containers.lock().unwrap().clone();
            let Some(answer) = answer(head.uri.path(), &question[5..], &known) else {
                let only = ok.header("grpc-status", "5").header("grpc-message", "no such container").body(()).unwrap();
                let _ = respond.send_response(only, true);
                return;
            };
            let mut message = BytesMut::new();
            message.put_u8(0);
            message.put_u32(u32::try_from(answer.len()).unwrap());
            message.extend_from_slice(&answer);
            let mut stream = respond.send_response(ok.body(()).unwrap(), false).unwrap();
            finish(&mut stream, message.freeze());
        }
    }
}

fn finish(stream: &mut SendStream<Bytes>, message: Bytes) {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let _ = stream.send_data(message, false);
    let _ = stream.send_trailers(trailers);
}

fn answer(path: &str, question: &[u8], known: &[Known]) -> Option<Vec<u8>> {
    let asked = |question| ListRequest::decode(question).unwrap().filter.unwrap().id;
    match path.strip_prefix("/runtime.v1.RuntimeService/").unwrap() {
        "ListContainers" => {
            let id = asked(question);
            let containers = known.iter().filter(|known| known.id == id).map(container).collect();
            Some(ListContainersResponse { containers }.encode_to_vec())
        }
        "ContainerStatus" => {
            let id = ContainerStatusRequest::decode(question).unwrap().container_id;
            let known = known.iter().find(|known| known.id == id)?;
            let image = Some(ImageSpec { image: known.image.clone() });
            let status = ContainerStatus { id, image, started_at: 1, ..ContainerStatus::default() };
            Some(ContainerStatusResponse { status: Some(status), info: HashMap::new() }.encode_to_vec())
        }
        "ListPodSandbox" => {
            let id = asked(question);
            let items = known.iter().find(|known| known.sandbox == id).map(sandbox).into_iter().collect();
            Some(ListPodSandboxResponse { items }.encode_to_vec())
        }
        other => panic!("nobody asks for {other}"),
    }
}

fn container(known: &Known) -> Container {
    Container {
        id: known.id.clone(),
        pod_sandbox_id: known.sandbox.clone(),
        metadata: Some(Metadata { name: known.name.clone(), attempt: 2 }),
        // As containerd does, which was told a digest by the kubelet.
        image: Some(ImageSpec { image: "sha256:0123".into() }),
        image_ref: "sha256:0123".into(),
        state: 1,
        created_at: 1,
        labels: [("io.kubernetes.container.name".to_owned(), known.name.clone())].into(),
        annotations: [("a".to_owned(), "b".repeat(100_000))].into(),
    }
}

fn sandbox(known: &Known) -> PodSandbox {
    PodSandbox {
        id: known.sandbox.clone(),
        metadata: Some(PodSandboxMetadata {
            name: known.pod.clone(),
            uid: "1c5e8d9d-4b6f-4a2e-9c3b-0123456789ab".into(),
            namespace: known.namespace.clone(),
            attempt: 1,
        }),
        state: 0,
        created_at: 1,
        labels: known.labels.iter().cloned().collect(),
        annotations: HashMap::new(),
    }
}
