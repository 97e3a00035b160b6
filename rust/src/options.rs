//! Settings of connections and models.

use std::net::Ipv6Addr;
use std::time::Duration;

use crate::error::Error;
use crate::observation::check_name;
use crate::watchdog::Fallback;
use crate::wire::DEFAULT_PRIORITY;

/// The timeout of `get_result` that suits most control loops, in ms.
pub const DEFAULT_TIMEOUT_MS: u64 = 100;

macro_rules! setters {
    ($($(#[$meta:meta])* $name:ident: $type:ty;)*) => {$(
        $(#[$meta])*
        #[must_use]
        pub fn $name(mut self, $name: $type) -> Self {
            self.$name = $name;
            self
        }
    )*};
}

/// Settings of a connection.
///
/// ```
/// use inferential::{Connection, ConnectionOptions};
///
/// let options = ConnectionOptions::new("robots.example:5555", "agent-01", "franka")
///     .connect_timeout_ms(250)
///     .request_timeout_ms(2_000);
/// let connection = Connection::with_options(options)?;
/// # Ok::<(), inferential::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ConnectionOptions {
    pub(crate) server: String,
    pub(crate) client_id: String,
    pub(crate) client_type: String,
    pub(crate) connect_timeout_ms: u64,
    pub(crate) request_timeout_ms: u64,
    pub(crate) heartbeat_ms: u32,
    pub(crate) reconnect_ms: u32,
    pub(crate) reconnect_max_ms: u32,
    pub(crate) send_queue: u32,
    pub(crate) linger_ms: u32,
    pub(crate) max_message_bytes: u64,
    pub(crate) hold_off: bool,
}

impl ConnectionOptions {
    /// Defaults. `server` is `tcp://HOST:PORT` (`tcp://` may be left out; an IPv6 address stands in brackets) or `ipc://PATH`;
    /// `client_id` names this client to the server and must not be empty; `client_type` says what it is. Both at most 256 bytes.
    pub fn new(
        server: impl Into<String>,
        client_id: impl Into<String>,
        client_type: impl Into<String>,
    ) -> ConnectionOptions {
        ConnectionOptions {
            server: server.into(),
            client_id: client_id.into(),
            client_type: client_type.into(),
            connect_timeout_ms: 1000,
            request_timeout_ms: 30_000,
            heartbeat_ms: 1000,
            reconnect_ms: 50,
            reconnect_max_ms: 500,
            send_queue: 1000,
            linger_ms: 200,
            max_message_bytes: 256 << 20,
            hold_off: true,
        }
    }

    setters! {
        /// How long the first send, and others meanwhile, may wait for a server that was never reached (default 1000).
        connect_timeout_ms: u64;
        /// A request without a reply ends TIMED_OUT after this (default 30000).
        request_timeout_ms: u64;
        /// Period of heartbeats, 300 to 1000 (default 1000); a link silent for three of them is down.
        heartbeat_ms: u32;
        /// First pause before connecting again, from 1 (default 50).
        reconnect_ms: u32;
        /// Longest pause before connecting again, up to 500 (default 500).
        reconnect_max_ms: u32;
        /// Observations that may wait to be sent, from 1 (default 1000); past that a send fails.
        send_queue: u32;
        /// How long closing may take to hand over what was sent, up to 10,000 (default 200).
        linger_ms: u32;
        /// Largest message in either direction, in bytes (default 256 MiB).
        max_message_bytes: u64;
        /// Whether requests are answered locally while the server asked not to be asked (default true).
        hold_off: bool;
    }

    /// The endpoint libzmq connects to, when all settings are in range.
    pub(crate) fn check(&self) -> Result<String, Error> {
        let endpoint = endpoint(&self.server)?;
        let option = |name: &'static str| move |reason: String| Error::InvalidOption { name, reason };
        if self.client_id.is_empty() {
            return Err(option("client_id")("must not be empty".to_owned()));
        }
        check_name(&self.client_id).map_err(option("client_id"))?;
        check_name(&self.client_type).map_err(option("client_type"))?;
        let ranges = [
            ("heartbeat_ms", self.heartbeat_ms, 300, 1000),
            ("reconnect_ms", self.reconnect_ms, 1, self.reconnect_max_ms),
            ("reconnect_max_ms", self.reconnect_max_ms, 1, 500),
            ("send_queue", self.send_queue, 1, i32::MAX as u32),
            ("linger_ms", self.linger_ms, 0, 10_000),
        ];
        for (name, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(option(name)(format!("is {value}; must be from {least} to {most}")));
            }
        }
        if self.max_message_bytes == 0 || self.max_message_bytes > i64::MAX as u64 {
            return Err(option("max_message_bytes")(format!("is {}; must be 1 or more", self.max_message_bytes)));
        }
        if self.request_timeout_ms == 0 {
            return Err(option("request_timeout_ms")("is 0; must be 1 or more".to_owned()));
        }
        Ok(endpoint)
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        // What a clock can hold, and longer than anybody waits.
        Duration::from_millis(self.connect_timeout_ms.min(u64::from(u32::MAX)))
    }
}

/// An address as libzmq wants it: with the scheme, without blanks around.
fn endpoint(server: &str) -> Result<String, Error> {
    let address = server.trim_matches([' ', '\t', '\r', '\n']);
    if address.strip_prefix("ipc://").is_some_and(|path| !path.is_empty() && !path.contains('\0')) {
        return Ok(address.to_owned());
    }
    host_and_port(address.strip_prefix("tcp://").unwrap_or(address))
        .map(|endpoint| format!("tcp://{endpoint}"))
        .ok_or_else(|| Error::InvalidAddress { address: server.to_owned() })
}

/// `HOST:PORT` with the port's leading zeros gone.
fn host_and_port(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    let is_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(ipv6) => is_ipv6(ipv6),
        None => is_name(host),
    };
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse::<u16>().ok().filter(|&port| port > 0)?;
    (is_host && digits).then(|| format!("{host}:{port}"))
}

/// As libzmq and name servers know them.
fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn is_ipv6(text: &str) -> bool {
    let (address, zone) = text.split_once('%').map_or((text, None), |(address, zone)| (address, Some(zone)));
    address.parse::<Ipv6Addr>().is_ok() && zone.is_none_or(is_name)
}

/// Settings of a model handle: what its observations say by default, and what [`act`](crate::Model::act) falls back to.
#[derive(Debug, Clone)]
pub struct ModelOptions {
    pub(crate) id: String,
    pub(crate) latency_budget_ms: f32,
    pub(crate) priority: u32,
    pub(crate) step_ms: f32,
    pub(crate) fallback: Fallback,
}

impl ModelOptions {
    /// Defaults: 50 ms of latency budget, priority 1, no step, [`Fallback::zero`].
    pub fn new(id: impl Into<String>) -> ModelOptions {
        ModelOptions {
            id: id.into(),
            latency_budget_ms: 50.0,
            priority: DEFAULT_PRIORITY,
            step_ms: 0.0,
            fallback: Fallback::zero(),
        }
    }

    setters! {
        /// Deadline in ms after arrival at the server; 0 leaves it to the server.
        latency_budget_ms: f32;
        /// 0 is the highest.
        priority: u32;
        /// How long one action lasts, in ms; 0 is not known.
        step_ms: f32;
        /// What `act` does without a fresh answer.
        fallback: Fallback;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_made_what_zmq_wants() {
        for (given, means) in [
            ("tcp://localhost:5555", "tcp://localhost:5555"),
            (" 10.0.0.1:65535 ", "tcp://10.0.0.1:65535"),
            ("\t tcp://my-robot_2.local:0005555\r\n", "tcp://my-robot_2.local:5555"),
            ("[::1]:5555", "tcp://[::1]:5555"),
            ("tcp://[fe80::1%eth0]:05555", "tcp://[fe80::1%eth0]:5555"),
            ("[::ffff:10.0.0.2]:5555", "tcp://[::ffff:10.0.0.2]:5555"),
            (" ipc:///run/inferential ", "ipc:///run/inferential"),
            ("ipc://@abstract", "ipc://@abstract"),
        ] {
            assert_eq!(endpoint(given).as_deref(), Ok(means));
        }
    }

    #[test]
    #[rustfmt::skip]
    fn an_address_that_can_never_connect_is_refused() {
        // As in the tests of the other SDKs.
        for wrong in [
            "", " ", "localhost", "tcp://localhost", "localhost:", "localhost:0", "localhost:00", "localhost:65536", "host:99999999999",
            "host:5555x", "host:5555/x", "host:-1", "host:+5", "host: 5555", "host:\u{0665}", "host:5555:6", "10.0.0.2:5555:6", ":5555",
            "tcp://:5555", "*:5555", "tcp://*:5555", "a b:5555", "ü:5555", "_a:5555", "host/x:5555", "host\0:5555", "::1:5555", "[::1]",
            "[::1:5555", "::1]:5555", "[::1]x:5555", "[]:5555", "[[::1]]:5555", "[1:2]:5555", "[127.0.0.1]:5555", "[::1%]:5555",
            "[::1%e h]:5555", "[%eth0]:5555", "lo:0;host:5555", "a;b:5555", "ipc://", "ipc://a\0b",
            "TCP://host:5555", "udp://host:5555", "inproc://x", "http://host:80/x", "://host:5555", "tcp:host:5555",
        ] {
            let text = endpoint(wrong).expect_err(wrong).to_string();
            assert_eq!(
                text,
                format!("address {wrong:?} must be tcp://HOST:PORT, with a port of 1 to 65535 and an IPv6 address in brackets, or ipc://PATH")
            );
        }
    }

    #[test]
    fn every_setting_has_its_range() {
        let options = || ConnectionOptions::new("localhost:5555", "a", "");
        assert!(options().check().is_ok());
        assert!(options().linger_ms(0).check().is_ok() && options().linger_ms(10_000).check().is_ok());
        let wrong = [
            ("client_id", ConnectionOptions::new("localhost:5555", "", "")),
            ("client_id", ConnectionOptions::new("localhost:5555", "x".repeat(257), "")),
            ("client_type", ConnectionOptions::new("localhost:5555", "a", "x".repeat(257))),
            ("heartbeat_ms", options().heartbeat_ms(299)),
            ("heartbeat_ms", options().heartbeat_ms(1001)),
            ("reconnect_ms", options().reconnect_ms(0)),
            ("reconnect_ms", options().reconnect_ms(100).reconnect_max_ms(50)),
            ("reconnect_max_ms", options().reconnect_max_ms(501)),
            ("send_queue", options().send_queue(0)),
            ("linger_ms", options().linger_ms(10_001)),
            ("max_message_bytes", options().max_message_bytes(0)),
            ("request_timeout_ms", options().request_timeout_ms(0)),
        ];
        for (expected, options) in wrong {
            match options.check() {
                Err(Error::InvalidOption { name, .. }) => assert_eq!(name, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }
}
