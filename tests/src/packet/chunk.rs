//! Types of SCTP's chunks (RFC 9260 3.2).

/// Payload data.
pub const DATA: u8 = 0;
/// Initiation.
pub const INIT: u8 = 1;
/// Its acknowledgement.
pub const INIT_ACK: u8 = 2;
/// Selective acknowledgement.
pub const SACK: u8 = 3;
/// Heartbeat request.
pub const HEARTBEAT: u8 = 4;
/// Its acknowledgement.
pub const HEARTBEAT_ACK: u8 = 5;
/// Abort.
pub const ABORT: u8 = 6;
/// Shutdown.
pub const SHUTDOWN: u8 = 7;
/// Its acknowledgement.
pub const SHUTDOWN_ACK: u8 = 8;
/// Operation error.
pub const ERROR: u8 = 9;
/// State cookie.
pub const COOKIE_ECHO: u8 = 10;
/// Its acknowledgement.
pub const COOKIE_ACK: u8 = 11;
/// The end of a shutdown.
pub const SHUTDOWN_COMPLETE: u8 = 14;
/// A type that nobody has defined.
pub const UNKNOWN: u8 = 77;

/// All of them.
pub const KINDS: [u8; 14] = [
    DATA,
    INIT,
    INIT_ACK,
    SACK,
    HEARTBEAT,
    HEARTBEAT_ACK,
    ABORT,
    SHUTDOWN,
    SHUTDOWN_ACK,
    ERROR,
    COOKIE_ECHO,
    COOKIE_ACK,
    SHUTDOWN_COMPLETE,
    UNKNOWN,
];

/// The T bit of ABORT and SHUTDOWN COMPLETE: the packet bears the tag of the one that it answers.
pub const REFLECTED: u8 = 1;
