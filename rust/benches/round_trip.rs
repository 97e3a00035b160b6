//! Round trip of the clients beside plain libzmq, against the same echo server, in one run. Prints JSON.
//!
//!     cargo bench --bench round_trip
//!
//! A single frame the server returns as it came: libzmq's own floor (`bare`), of which the protocol's frames and the server's work
//! are no part. An observation it answers as an inference server does. Plain libzmq does both; what a client takes longer
//! than libzmq with the same frames (`frames`) is the client's own.
//!
//! Clients and server share one CPU. Left to the scheduler, each connection's threads settle on CPUs of their own luck, which makes one
//! connection's round trip up to 1.5 times another's, plain libzmq's among them. On one CPU nothing is hidden by running beside
//! something else, so what a client costs shows in full.

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use inferential::zmq::{Context, IntOption, Message, Socket, SocketKind};
use inferential::{proto, AsyncConnection, Connection};
use prost::Message as _;
use rustix::event::{poll, PollFd, PollFlags};
use rustix::thread::{sched_getcpu, sched_setaffinity, CpuSet};

const SIZES: [usize; 2] = [28, 150_528];
/// The argument that makes this program the server.
const SERVE: &str = "--serve";
/// Clients take turns in blocks, so that the machine's moods meet all of them.
const BLOCKS: usize = 40;
const TRIPS_PER_BLOCK: usize = 100;

/// Every way to the heap leads through these, libzmq's too, on all threads: what the C++ benchmark counts as well.
mod counting {
    use std::ffi::c_void;
    use std::sync::atomic::{AtomicU64, Ordering};

    static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

    extern "C" {
        fn __libc_malloc(size: usize) -> *mut c_void;
        fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
        fn __libc_realloc(block: *mut c_void, size: usize) -> *mut c_void;
        fn __libc_memalign(alignment: usize, size: usize) -> *mut c_void;
    }

    pub fn allocations() -> u64 {
        ALLOCATIONS.load(Ordering::Relaxed)
    }

    fn count() {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }

    #[no_mangle]
    extern "C" fn malloc(size: usize) -> *mut c_void {
        count();
        // SAFETY: glibc's own, under its other name.
        unsafe { __libc_malloc(size) }
    }
    #[no_mangle]
    extern "C" fn calloc(items: usize, size: usize) -> *mut c_void {
        count();
        // SAFETY: as above.
        unsafe { __libc_calloc(items, size) }
    }
    #[no_mangle]
    unsafe extern "C" fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
        count();
        // SAFETY: as above; the block is one of glibc's.
        unsafe { __libc_realloc(block, size) }
    }
    #[no_mangle]
    extern "C" fn aligned_alloc(alignment: usize, size: usize) -> *mut c_void {
        count();
        // SAFETY: as above.
        unsafe { __libc_memalign(alignment, size) }
    }
}
use counting::allocations;

/// A socket and the descriptor to wait on.
struct Raw {
    socket: Socket,
    descriptor: OwnedFd,
}

impl Raw {
    fn new(kind: SocketKind) -> Raw {
        let context = Context::new().unwrap();
        let socket = context.socket(kind).unwrap();
        socket.set(IntOption::Linger, 0).unwrap();
        let descriptor = socket.descriptor().unwrap();
        Raw { socket, descriptor }
    }

    fn dealer(address: &str) -> Raw {
        let raw = Raw::new(SocketKind::Dealer);
        raw.socket.connect(address).unwrap();
        raw
    }

    fn receive(&self) -> Message {
        loop {
            if let Some(frame) = self.socket.receive().unwrap() {
                return frame;
            }
            let _ = poll(&mut [PollFd::new(&self.descriptor, PollFlags::IN)], None);
        }
    }

    /// Sends the frames and reads as many.
    fn round_trip(&self, frames: &[&[u8]]) {
        for (i, frame) in frames.iter().enumerate() {
            self.socket.send(Message::copy_of(frame).unwrap(), i + 1 < frames.len()).unwrap();
        }
        let payload = frames.iter().map(|_| self.receive()).reduce(|_, next| next).unwrap();
        assert_eq!(payload.as_ref().len(), frames[frames.len() - 1].len());
    }
}

/// An echo server in a process of its own, so that what it allocates is not counted; gone when dropped.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start() -> Server {
        let program = std::env::current_exe().unwrap();
        let mut process = Command::new(program).arg(SERVE).stdout(Stdio::piped()).spawn().unwrap();
        let mut address = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut address).unwrap();
        Server { process, address: address.trim().to_owned() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Echoes single frames, and the tensors of each observation, for ever; prints its address.
fn serve() {
    let server = Raw::new(SocketKind::Router);
    println!("{}", server.socket.bind("tcp://127.0.0.1:*").unwrap());
    loop {
        let peer = server.receive();
        let delimiter = server.receive();
        if !delimiter.more() {
            server.socket.send(peer, true).unwrap();
            server.socket.send(delimiter, false).unwrap();
            continue;
        }
        let observation = proto::Observation::decode(server.receive().as_ref()).unwrap();
        let payload = server.receive();
        let response = proto::ModelResponse {
            client: observation.client,
            tensors: observation.tensors,
            model_id: observation.model_id,
            request_id: observation.request_id,
            protocol_version: 2,
            ..Default::default()
        };
        for (frame, more) in [
            (peer, true),
            (delimiter, true),
            (Message::copy_of(&response.encode_to_vec()).unwrap(), true),
            (payload, false),
        ] {
            server.socket.send(frame, more).unwrap();
        }
    }
}

/// Times and allocations of one client.
#[derive(Default)]
struct Figures {
    times: Vec<Duration>,
    allocations: u64,
}

impl Figures {
    /// One block of trips.
    fn add(&mut self, mut trip: impl FnMut()) {
        for _ in 0..TRIPS_PER_BLOCK {
            let (start, before) = (Instant::now(), allocations());
            trip();
            self.times.push(start.elapsed());
            self.allocations += allocations() - before;
        }
    }

    fn microseconds(&mut self, quantile: f64) -> f64 {
        self.times.sort();
        self.times[(self.times.len() as f64 * quantile) as usize].as_secs_f64() * 1e6
    }

    fn json(&mut self) -> String {
        format!(
            "{{\"p50_us\": {:.1}, \"p99_us\": {:.1}, \"allocations\": {:.2}}}",
            self.microseconds(0.5),
            self.microseconds(0.99),
            self.allocations as f64 / self.times.len() as f64
        )
    }
}

fn main() {
    if std::env::args().any(|argument| argument == SERVE) {
        return serve();
    }
    // The server and libzmq's threads inherit it.
    let mut this_cpu = CpuSet::new();
    this_cpu.set(sched_getcpu());
    sched_setaffinity(None, &this_cpu).unwrap();
    let mut results = Vec::new();
    for size in SIZES {
        let server = Server::start();
        let address = &server.address;
        let bytes = vec![7u8; size];

        let envelope = proto::Observation {
            client: Some(proto::Client { id: "agent-01".to_owned(), r#type: "franka".to_owned() }),
            timestamp_ns: SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
            latency_budget_ms: 30.0,
            priority: 1,
            model_id: "policy".to_owned(),
            request_id: 1,
            tensors: vec![proto::Tensor {
                key: "state".to_owned(),
                dtype: 5,
                shape: vec![size as i64],
                byte_length: size as u64,
                encoding: 1,
                ..Default::default()
            }],
            ..Default::default()
        }
        .encode_to_vec();
        let [one, same] = [(); 2].map(|()| Raw::dealer(address));
        let bare_trip = || one.round_trip(&[&bytes]);
        let frames_trip = || same.round_trip(&[&[], &envelope, &bytes]);

        let connection = Connection::new(address, "agent-01", "franka");
        let model = connection.model("policy", 30.0, 1);
        let blocking_trip = || {
            model.observe().tensor_slice("state", &bytes, &[size]).send();
            let result = model.get_result(10_000).expect("an answer");
            assert_eq!(result["state"].as_slice::<u8>().expect("bytes").len(), size);
        };

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let async_connection = AsyncConnection::new(address, "agent-01", "franka");
        let async_model = async_connection.model("policy", 30.0, 1);
        let tokio_trip = || {
            runtime.block_on(async {
                async_model.observe().tensor_slice("state", &bytes, &[size]).send().await;
                let result = async_model.get_result(10_000).await.expect("an answer");
                assert_eq!(result["state"].as_slice::<u8>().expect("bytes").len(), size);
            });
        };

        // What the caller saves who hands over memory in place of lending it.
        let shared =
            inferential::Tensor::from_bytes(inferential::DType::UInt8, &[size], Bytes::from(bytes.clone())).unwrap();
        let owned_trip = || {
            model.observe().tensor("state", shared.clone()).send();
            assert!(model.get_result(10_000).is_some());
        };

        for _ in 0..200 {
            bare_trip();
            frames_trip();
            blocking_trip();
            tokio_trip();
            owned_trip();
        }
        let [mut bare, mut frames, mut blocking, mut tokio, mut owned] = [(); 5].map(|()| Figures::default());
        for _ in 0..BLOCKS {
            bare.add(bare_trip);
            frames.add(frames_trip);
            blocking.add(blocking_trip);
            tokio.add(tokio_trip);
            owned.add(owned_trip);
        }
        results.push(format!(
            "{{\"bytes\": {size}, \"bare\": {}, \"frames\": {}, \"blocking\": {}, \"tokio\": {}, \"blocking_owned\": {}}}",
            bare.json(),
            frames.json(),
            blocking.json(),
            tokio.json(),
            owned.json(),
        ));
    }
    println!("{{\"sdk\": \"rust\", \"round_trip\": [\n{}\n]}}", results.join(",\n"));
}
