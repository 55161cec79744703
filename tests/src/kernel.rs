//! The kernel's own table of TCP sockets (sock_diag(7)): a count of connections that does not depend on
//! anything we say.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddress};

/// Where `tcpi_bytes_sent` is in `struct tcp_info`, whose fields never move (linux/tcp.h).
const BYTES_SENT: std::ops::Range<usize> = 200..208;

/// More than the kernel puts into one answer of a dump (NLMSG_GOODSIZE at most 8 KiB, 32 KiB when asked with
/// a large buffer).
const ANSWER_SIZE: usize = 64 * 1024;

/// One established server-side socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Established {
    /// The kernel's name of the socket, never used twice.
    pub cookie: u64,
    /// Payload bytes sent so far, retransmissions included.
    pub bytes_sent: u64,
}

/// The established IPv4 sockets whose own port is `port`, by client address.
///
/// The kernel walks its table while connections come and go, so one dump may show two sockets that never
/// existed at the same time. What is in two dumps in a row existed at the moment between them: see
/// [`in_both`].
///
/// # Panics
/// When the kernel does not answer.
#[must_use]
pub fn established(port: u16) -> BTreeMap<SocketAddr, Established> {
    let mut sockets = BTreeMap::new();
    dump(port, StateFlags::ESTABLISHED, |response| {
        let id = &response.header.socket_id;
        let info = response.nlas.iter().find_map(|nla| match nla {
            Nla::TcpInfo(info) => Some(info),
            _ => None,
        });
        let bytes_sent = info.and_then(|info| info.get(BYTES_SENT)).expect("tcp_info with tcpi_bytes_sent");
        let established = Established {
            cookie: u64::from_ne_bytes(id.cookie),
            bytes_sent: u64::from_ne_bytes(bytes_sent.try_into().expect("eight bytes")),
        };
        sockets.insert(SocketAddr::new(id.destination_address, id.destination_port), established);
    });
    sockets
}

/// How many connections wait in the accept queues of the listeners on `port`.
///
/// # Panics
/// When the kernel does not answer.
#[must_use]
pub fn accept_queue(port: u16) -> u64 {
    let mut queued = 0;
    dump(port, StateFlags::LISTEN, |response| queued += u64::from(response.header.recv_queue));
    queued
}

/// The sockets that are in both dumps, as the first one shows them: all of these existed at the moment
/// between them.
#[must_use]
pub fn in_both(
    first: &BTreeMap<SocketAddr, Established>,
    second: &BTreeMap<SocketAddr, Established>,
) -> Vec<Established> {
    let same = |address: &SocketAddr, socket: &Established| {
        second.get(address).is_some_and(|other| other.cookie == socket.cookie)
    };
    first.iter().filter(|(address, socket)| same(address, socket)).map(|(_, socket)| *socket).collect()
}

fn dump(port: u16, states: StateFlags, mut each: impl FnMut(&InetResponse)) {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG).expect("a sock_diag socket");
    socket.bind_auto().expect("bind the sock_diag socket");
    socket.connect(&NetlinkAddress::new(0, 0)).expect("connect to the kernel");
    socket.send(&request(port, states), 0).expect("ask the kernel for its sockets");
    let mut answer = vec![0; ANSWER_SIZE];
    loop {
        let length = socket.recv(&mut &mut answer[..], 0).expect("the kernel's answer");
        let mut rest = &answer[..length];
        while !rest.is_empty() {
            let message = <NetlinkMessage<SockDiagMessage>>::deserialize(rest).expect("a sock_diag message");
            match &message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => each(response),
                NetlinkPayload::Done(_) => return,
                other => panic!("the kernel refuses to list its sockets: {other:?}"),
            }
            // Messages are aligned to four bytes (NLMSG_ALIGN).
            let aligned = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(aligned..).unwrap_or_default();
        }
    }
}

fn request(port: u16, states: StateFlags) -> Vec<u8> {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = InetRequest {
        family: AF_INET,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::INFO,
        states,
        socket_id: SocketId {
            source_port: port,
            destination_port: 0,
            source_address: any,
            destination_address: any,
            interface_id: 0,
            cookie: [0; 8],
        },
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
