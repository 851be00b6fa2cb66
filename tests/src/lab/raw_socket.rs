//! Sockets below the firewall: whole frames on a wire's end, whole packets out of a host, and what
//! a host's firewall let in. They are opened inside a namespace and then used from anywhere.
#![allow(
    unsafe_code,
    reason = "AF_PACKET addresses and options have no safe wrapper in the crates we use"
)]

use std::io::{self, IoSliceMut, Read};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::Namespace;

/// Larger than any packet on a link of MTU 1500, and than any datagram the tests reassemble.
const BUFFER: usize = 16 * 1024;

/// One end of a wire: sends and receives Ethernet frames. Frames that this side sends itself are
/// not received.
#[derive(Debug)]
pub struct FrameSocket {
    socket: Socket,
}

impl FrameSocket {
    /// Opens on `interface` of `namespace`.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        let socket = namespace.enter(|| open_frames(interface))??;
        Ok(Self { socket })
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.send(frame).map(drop)
    }

    /// The next frame, or nothing if none is waiting.
    pub fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        receive(&self.socket)
    }
}

impl AsFd for FrameSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends frames whose transport checksum is left to the card (CHECKSUM_PARTIAL), as a host's own are.
#[derive(Debug)]
pub struct UnfinishedSender {
    socket: Socket,
}

impl UnfinishedSender {
    /// Opens on `interface` of `namespace`.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        let socket = namespace.enter(|| -> Result<Socket> {
            let socket = open_frames(interface)?;
            switch_on(&socket, libc::PACKET_VNET_HDR).context("PACKET_VNET_HDR")?;
            Ok(socket)
        })??;
        Ok(Self { socket })
    }

    /// Sends one frame, whose transport header is at `start` and has its checksum's field at `field` from
    /// there.
    pub fn send(&self, frame: &[u8], start: usize, field: usize) -> io::Result<()> {
        /// `VIRTIO_NET_HDR_F_NEEDS_CSUM` of linux/virtio_net.h.
        const NEEDS_SUM: u8 = 1;
        // What follows the flags says that the frame is a single packet.
        let mut bytes = vec![NEEDS_SUM, 0, 0, 0, 0, 0];
        bytes.extend((start as u16).to_ne_bytes());
        bytes.extend((field as u16).to_ne_bytes());
        bytes.extend_from_slice(frame);
        self.socket.send(&bytes).map(drop)
    }
}

/// Sends whole IP packets from inside a host, through its OUTPUT hook.
#[derive(Debug)]
pub struct LocalSender {
    v4: Socket,
    v6: Socket,
}

impl LocalSender {
    /// Opens in `namespace`.
    pub fn open(namespace: &Namespace) -> Result<Self> {
        namespace.enter(|| -> Result<Self> {
            let raw = Some(Protocol::from(libc::IPPROTO_RAW));
            let v4 = Socket::new(Domain::IPV4, Type::RAW, raw).context("IPv4 raw socket")?;
            v4.set_header_included_v4(true)?;
            let v6 = Socket::new(Domain::IPV6, Type::RAW, raw).context("IPv6 raw socket")?;
            v6.set_header_included_v6(true)?;
            v4.set_broadcast(true)?;
            Ok(Self { v4, v6 })
        })?
    }

    /// Sends one packet with its IP header.
    pub fn send(&self, packet: &[u8], destination: IpAddr) -> io::Result<()> {
        let socket = match destination {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        };
        socket
            .send_to(packet, &SocketAddr::new(destination, 0).into())
            .map(drop)
    }
}

/// Receives what a host accepts for itself of one protocol: raw sockets get their copy after the
/// INPUT hook.
#[derive(Debug)]
pub struct LocalReceiver {
    socket: Socket,
}

impl LocalReceiver {
    /// Opens in `namespace` for an IP protocol. IPv4's packets come whole; IPv6's without headers.
    pub fn open(namespace: &Namespace, v6: bool, protocol: u8) -> Result<Self> {
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        let socket = namespace.enter(|| -> io::Result<Socket> {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(protocol))))?;
            socket.set_nonblocking(true)?;
            if v6 {
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            }
            Ok(socket)
        })?;
        Ok(Self {
            socket: socket.with_context(|| format!("raw socket of protocol {protocol}"))?,
        })
    }

    /// The next packet, or nothing if none is waiting.
    pub fn receive(&self) -> io::Result<Option<Received>> {
        let mut bytes = vec![0; BUFFER];
        let mut said = cmsg_space!(libc::in6_pktinfo);
        let mut room = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::empty();
        let message = match recvmsg::<SockaddrStorage>(
            self.socket.as_raw_fd(),
            &mut room,
            Some(&mut said),
            flags,
        ) {
            Ok(message) => message,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let source = message.address.and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|it| IpAddr::from(it.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::from(it.ip())))
        });
        let destination = message.cmsgs()?.find_map(|said| match said {
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                Some(Ipv6Addr::from(info.ipi6_addr.s6_addr))
            }
            _ => None,
        });
        let length = message.bytes;
        bytes.truncate(length);
        Ok(Some(Received {
            source: source.unwrap_or(IpAddr::from([0, 0, 0, 0])),
            destination,
            bytes,
        }))
    }
}

/// What [`LocalReceiver`] received.
#[derive(Debug)]
pub struct Received {
    /// Who sent it.
    pub source: IpAddr,
    /// To which address, if that is not in the bytes, as it is not with IPv6.
    pub destination: Option<Ipv6Addr>,
    /// The packet, or with IPv6 what is behind its header.
    pub bytes: Vec<u8>,
}

impl AsFd for LocalReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn receive(mut socket: &Socket) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = [0; BUFFER];
    match socket.read(&mut buffer) {
        Ok(length) => Ok(Some(buffer[..length].to_vec())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

fn open_frames(interface: &str) -> Result<Socket> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    let index = if_nametoindex(interface).with_context(|| format!("find interface {interface}"))?;
    // Protocol 0 receives nothing until bind() names a protocol, so no frame of another interface
    // slips in between.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None).context("AF_PACKET socket")?;
    switch_on(&socket, libc::PACKET_IGNORE_OUTGOING).context("PACKET_IGNORE_OUTGOING")?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: SockAddrStorage is large enough for and aligned to every sockaddr of the system,
    // and all of its bytes are zero, which is a valid sockaddr_ll.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_protocol = all;
    link.sll_ifindex = i32::try_from(index).context("interface index")?;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `storage` holds a sockaddr_ll of exactly this length.
    let address = unsafe { SockAddr::new(storage, length) };
    socket.bind(&address).context("bind to the interface")?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn switch_on(socket: &Socket, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, whose address and size are given; the call keeps neither.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
