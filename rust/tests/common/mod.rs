//! A ROUTER socket in a thread of its own, on a port the system chose, that answers as a test tells it to.

#![allow(dead_code)]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use inferential::proto;
use inferential::wire;
use inferential::zmq::{Context, IntOption, Message, Socket, SocketKind};
use inferential::{Connection, ConnectionOptions, DType, Model, Tensor, Tensors};
use prost::Message as _;

/// Longest wait for anything that must come; far above what a busy machine needs.
pub const PATIENCE_MS: u64 = 30_000;
pub const PATIENCE: Duration = Duration::from_millis(PATIENCE_MS);

/// Settings for a machine so busy that a handshake may take seconds.
pub fn patient(address: &str) -> ConnectionOptions {
    ConnectionOptions::new(address, "agent-01", "franka").connect_timeout_ms(PATIENCE_MS)
}

/// A connection and its handle of one model.
pub fn connect(server: &Server) -> (Connection, Model) {
    let connection = Connection::with_options(patient(&server.address)).unwrap();
    let model = connection.model("policy", 30.0, 1);
    (connection, model)
}

/// Sends an observation without tensors; its id.
pub fn send(model: &Model) -> u64 {
    model.observe().send().into_result().expect("sent")
}

/// An observation as the server got it.
#[derive(Debug, Clone)]
pub struct Request {
    pub peer: Bytes,
    pub observation: proto::Observation,
    pub payloads: Vec<Bytes>,
}

impl Request {
    pub fn tensors(&self) -> Tensors {
        wire::decode_tensors(self.observation.tensors.clone(), &self.payloads).expect("valid tensors")
    }

    /// An OK reply with the same tensors.
    pub fn echo(&self) -> Answer {
        let mut answer = self.answer(0);
        answer.envelope.tensors = self.observation.tensors.clone();
        answer.envelope.metadata = self.observation.metadata.clone();
        answer.payloads = self.payloads.clone();
        answer
    }

    /// A reply of this status without tensors.
    pub fn answer(&self, status: i32) -> Answer {
        let observation = &self.observation;
        Answer {
            peer: self.peer.clone(),
            envelope: proto::ModelResponse {
                client: observation.client.clone(),
                response_id: format!("r{}", observation.request_id),
                timestamp_ns: 1,
                model_id: observation.model_id.clone(),
                request_id: observation.request_id,
                status,
                observation_timestamp_ns: observation.timestamp_ns,
                protocol_version: 2,
                timing: Some(proto::Timing {
                    queue_ms: 1.0,
                    inference_ms: 2.0,
                    server_ms: 4.0,
                    batch_size: 3,
                    replica: "a".to_owned(),
                }),
                ..Default::default()
            },
            payloads: vec![Bytes::new()],
        }
    }

    /// An OK reply as a v1 server writes it.
    pub fn v1_echo(&self) -> Answer {
        let mut answer = self.echo();
        let envelope = &mut answer.envelope;
        *envelope = proto::ModelResponse {
            client: envelope.client.take(),
            response_id: std::mem::take(&mut envelope.response_id),
            timestamp_ns: 1,
            tensors: std::mem::take(&mut envelope.tensors),
            model_id: std::mem::take(&mut envelope.model_id),
            metadata: std::mem::take(&mut envelope.metadata),
            inference_latency_ms: 2.0,
            ..Default::default()
        };
        answer
    }

    pub fn pong(&self) -> Answer {
        let mut answer = self.answer(0);
        answer.envelope.metadata = HashMap::from([
            ("model:policy".to_owned(), "ready".to_owned()),
            ("model:slow".to_owned(), "not ready".to_owned()),
            ("server".to_owned(), "2.0.0".to_owned()),
            ("protocol".to_owned(), "2".to_owned()),
        ]);
        answer
    }
}

/// A message to send.
#[derive(Debug, Clone)]
pub struct Answer {
    pub peer: Bytes,
    pub envelope: proto::ModelResponse,
    pub payloads: Vec<Bytes>,
}

enum Order {
    Answer(Box<Answer>),
    Stop,
}

/// The server. Requests go to `requests`; what the test sends with `answer` goes out.
pub struct Server {
    pub address: String,
    requests: Receiver<Request>,
    orders: Sender<Order>,
    bell: std::os::unix::net::UnixStream,
    thread: Option<JoinHandle<()>>,
}

fn router(address: &str) -> (Arc<Context>, Socket, String) {
    let context = Context::new().unwrap();
    let socket = context.socket(SocketKind::Router).unwrap();
    socket.set(IntOption::Linger, 0).unwrap();
    socket.set(IntOption::SendHwm, 100_000).unwrap();
    socket.set(IntOption::ReceiveHwm, 100_000).unwrap();
    if address.contains('[') {
        socket.set(IntOption::Ipv6, 1).unwrap();
    }
    let bound = socket.bind(address).unwrap();
    (context, socket, bound)
}

impl Server {
    /// A server that answers when it is told to.
    pub fn start() -> Server {
        Server::start_at("tcp://127.0.0.1:*", |_| Vec::new())
    }

    /// A server that echoes and answers pings.
    pub fn echo() -> Server {
        Server::start_at("tcp://127.0.0.1:*", |request| match request.observation.kind {
            0 => vec![request.echo()],
            1 => vec![request.pong()],
            _ => Vec::new(),
        })
    }

    /// A server that answers each request at once with what `respond` returns, at an address.
    pub fn start_at(address: &str, mut respond: impl FnMut(&Request) -> Vec<Answer> + Send + 'static) -> Server {
        let (_context, socket, address) = router(address);
        let descriptor = socket.descriptor().unwrap();
        let (request_sender, requests) = channel();
        let (orders, order_receiver) = channel();
        let (bell, clapper) = std::os::unix::net::UnixStream::pair().unwrap();
        clapper.set_nonblocking(true).unwrap();
        let thread = std::thread::spawn(move || {
            loop {
                while let Some(request) = receive(&socket) {
                    respond(&request).iter().for_each(|answer| transmit(&socket, answer));
                    let _ = request_sender.send(request);
                }
                for order in order_receiver.try_iter() {
                    match order {
                        Order::Answer(answer) => transmit(&socket, &answer),
                        Order::Stop => return,
                    }
                }
                // Sending may have taken in what the descriptor signalled.
                if let Some(request) = receive(&socket) {
                    respond(&request).iter().for_each(|answer| transmit(&socket, answer));
                    let _ = request_sender.send(request);
                    continue;
                }
                wait(&descriptor, &clapper);
            }
        });
        Server { address, requests, orders, bell, thread: Some(thread) }
    }

    /// The next request.
    pub fn request(&self) -> Request {
        self.requests.recv_timeout(PATIENCE).expect("a request within the time")
    }

    /// The next request, if it is there already.
    pub fn try_request(&self) -> Option<Request> {
        self.requests.try_recv().ok()
    }

    pub fn answer(&self, answer: Answer) {
        self.order(Order::Answer(Box::new(answer)));
    }

    fn order(&self, order: Order) {
        let _ = self.orders.send(order);
        let _ = (&self.bell).write(&[0]);
    }

    /// Stops, and frees the port.
    pub fn stop(mut self) {
        self.join();
    }

    fn join(&mut self) {
        self.order(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            if !std::thread::panicking() {
                result.expect("the server's thread");
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.join();
        }
    }
}

fn wait(descriptor: &OwnedFd, clapper: &std::os::unix::net::UnixStream) {
    use rustix::event::{poll, PollFd, PollFlags};
    let mut polled = [PollFd::new(descriptor, PollFlags::IN), PollFd::new(clapper, PollFlags::IN)];
    let _ = poll(&mut polled, None);
    let mut clapper = clapper;
    let _ = clapper.read(&mut [0; 64]);
}

fn receive(socket: &Socket) -> Option<Request> {
    let mut frames = Vec::new();
    let mut frame = socket.receive().unwrap()?;
    loop {
        let more = frame.more();
        frames.push(Bytes::from(frame));
        if !more {
            break;
        }
        frame = socket.receive().unwrap().expect("the rest of the message");
    }
    assert!(frames.len() >= 4, "routing id, delimiter, envelope, payload");
    assert!(frames[1].is_empty());
    let observation = proto::Observation::decode(frames[2].clone()).expect("an observation");
    Some(Request { peer: frames[0].clone(), observation, payloads: frames.split_off(3) })
}

fn transmit(socket: &Socket, answer: &Answer) {
    let mut frames = vec![
        Message::copy_of(&answer.peer).unwrap(),
        Message::new(),
        Message::copy_of(&answer.envelope.encode_to_vec()).unwrap(),
    ];
    frames.extend(answer.payloads.iter().map(|payload| Message::sharing(payload.clone()).unwrap()));
    let last = frames.len() - 1;
    for (index, frame) in frames.into_iter().enumerate() {
        socket.send(frame, index < last).unwrap();
    }
}

/// A tensor of every type, scalars and empty ones included.
pub fn every_dtype() -> Tensors {
    let mut tensors = Tensors::new();
    for (index, &dtype) in DType::ALL.iter().enumerate() {
        let bytes: Vec<u8> = (0..3 * dtype.size()).map(|byte| (byte * 37 + index) as u8).collect();
        tensors.insert(dtype.name(), Tensor::from_bytes(dtype, &[3, 1], bytes).unwrap());
    }
    tensors.insert("scalar", Tensor::from_slice(&[0.5f64], &[]).unwrap());
    tensors.insert("empty", Tensor::from_slice::<i64>(&[], &[0, 4]).unwrap());
    tensors
}

/// What `child` returns in a child of this process, which is killed where it takes too long.
pub fn in_a_fork(child: impl FnOnce() -> u8) -> Result<u8, String> {
    extern "C" {
        fn fork() -> i32;
        fn alarm(seconds: u32) -> u32;
        fn waitpid(process: i32, status: *mut i32, options: i32) -> i32;
        fn _exit(code: i32) -> !;
    }
    const PANICKED: u8 = 255;
    // SAFETY: the child runs `child` and nothing else: no unwinding into the test, no exit handlers.
    let process = unsafe { fork() };
    if process == 0 {
        // SAFETY: as above; alarm kills a child that hangs.
        unsafe { alarm(PATIENCE.as_secs() as u32) };
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(PANICKED);
        // SAFETY: as above.
        unsafe { _exit(code.into()) };
    }
    assert!(process > 0, "no child");
    let mut status = 0;
    // SAFETY: `status` is an int; the child ends by itself or is killed.
    while unsafe { waitpid(process, &mut status, 0) } != process {}
    match status {
        exited if exited & 0x7f == 0 => Ok((exited >> 8) as u8),
        killed => Err(format!("killed by signal {}", killed & 0x7f)),
    }
}

/// Takes one connection, answers with what breaks ZMTP's rules, and is gone once the client has hung up.
pub fn wrong_peer() -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut greeting = b"\xff\0\0\0\0\0\0\0\0\x7f\x03\0NULL".to_vec();
        greeting.resize(64, 0);
        client.write_all(&greeting).unwrap();
        client.write_all(b"\x04\x06\x03BADxx").unwrap();
        while let Ok(1..) = client.read(&mut [0; 256]) {}
    });
    (address, thread)
}

/// Forwards one TCP connection after another to a server, until it is frozen: then it swallows everything, as a broken
/// network does.
pub struct Proxy {
    pub address: String,
    frozen: Arc<AtomicBool>,
}

impl Proxy {
    pub fn to(server: &Server) -> Proxy {
        let target = server.address.trim_start_matches("tcp://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let frozen = Arc::new(AtomicBool::new(false));
        let state = Arc::clone(&frozen);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&target) else { continue };
                for (mut from, mut to) in [
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server.try_clone().unwrap(), client.try_clone().unwrap()),
                ] {
                    let frozen = Arc::clone(&state);
                    std::thread::spawn(move || {
                        let mut buffer = [0; 65536];
                        while let Ok(length @ 1..) = from.read(&mut buffer) {
                            if !frozen.load(Ordering::SeqCst) && to.write_all(&buffer[..length]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
            }
        });
        Proxy { address, frozen }
    }

    pub fn freeze(&self) {
        self.frozen.store(true, Ordering::SeqCst);
    }
}
