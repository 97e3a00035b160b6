//! Settings of connections and models.

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
    /// Defaults. `server` is `tcp://HOST:PORT` (`tcp://` may be left out); `client_id` names this client to the server and
    /// must not be empty; `client_type` says what it is. Both at most 256 bytes.
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

/// Checks an address and puts `tcp://` before it where there is no scheme.
fn endpoint(server: &str) -> Result<String, Error> {
    let invalid = |reason: &str| Error::InvalidAddress { address: server.to_owned(), reason: reason.to_owned() };
    let address = match server.split_once("://") {
        Some(("tcp", address)) => address,
        Some((scheme, _)) => return Err(invalid(&format!("the scheme {scheme:?} is not supported"))),
        None => server,
    };
    let (host, port) = address.rsplit_once(':').ok_or_else(|| invalid("the port is missing"))?;
    if host.is_empty() || host == "*" {
        return Err(invalid("the host is missing"));
    }
    // The address of IPv6 has colons too, and so stands in brackets.
    let well_formed = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|name| !name.is_empty() && !name.contains(['[', ']'])),
        None => !host.contains([':', '[', ']']),
    };
    if !well_formed {
        return Err(invalid("one port must follow the host, an IPv6 address in brackets"));
    }
    if host.contains(|character: char| character.is_whitespace() || matches!(character, '/' | ';' | '\0')) {
        return Err(invalid("the host has a character that no host name has"));
    }
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(port) if digits && port > 0 => Ok(format!("tcp://{host}:{port}")),
        _ => Err(invalid(&format!("the port is {port:?}; must be from 1 to 65535"))),
    }
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
    fn addresses() {
        assert_eq!(endpoint("tcp://localhost:5555").unwrap(), "tcp://localhost:5555");
        assert_eq!(endpoint("10.0.0.1:5555").unwrap(), "tcp://10.0.0.1:5555");
        assert_eq!(endpoint("tcp://[::1]:5555").unwrap(), "tcp://[::1]:5555");
        assert_eq!(endpoint("[fe80::1%eth0]:005555").unwrap(), "tcp://[fe80::1%eth0]:5555");
        for wrong in [
            "",
            "localhost",
            "tcp://localhost",
            "localhost:",
            "localhost:0",
            "localhost:65536",
            ":5555",
            "tcp://*:5555",
            "::1:5555",
            "a:b:5555",
            "[::1:5555",
            "::1]:5555",
            "[::1]",
            "[::1]x:5555",
            "[]:5555",
            "[[::1]]:5555",
            "127.0.0.1:+5555",
            "127.0.0.1:\u{0665}",
            " localhost:5555",
            "localhost:5555 ",
        ] {
            assert!(matches!(endpoint(wrong), Err(Error::InvalidAddress { .. })), "{wrong}");
        }
        for wrong in ["udp://localhost:5555", "a b:5555", "tcp://a;b:5555", "tcp://host:-1", "http://host:80/x"] {
            let text = endpoint(wrong).unwrap_err().to_string();
            assert!(text.contains(wrong) && text.contains("tcp://HOST:PORT"), "{text}");
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
