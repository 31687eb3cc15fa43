//! Who this process is to others, and where they reach it.

use crate::membership::DeviceKind;
use crate::proto;
use crate::worker::wire;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use tonic::transport::Endpoint;

/// What a worker says of itself at first: it takes part in no job.
pub(super) fn introduction(collective: String, device: &DeviceKind, cores: u32) -> proto::Hello {
    proto::Hello {
        protocol: "ganglion.v1".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        incarnation: incarnation(),
        host: host_name(),
        pid: std::process::id(),
        collective,
        device: Some(wire::device(device)),
        cores,
        ..proto::Hello::default()
    }
}

/// The address of this machine that faces the coordinator.
pub(super) fn facing(endpoint: &Endpoint) -> String {
    let uri = endpoint.uri();
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let target = (
        host,
        uri.port_u16().unwrap_or(match uri.scheme_str() {
            Some("https") => 443,
            _ => 80,
        }),
    )
        .to_socket_addrs();
    let Some(target) = target.ok().and_then(|mut found| found.next()) else {
        // The name may not exist yet; the host's own name is the best guess.
        return host_name();
    };
    // No packet is sent: connecting a datagram socket only chooses the route.
    let any: SocketAddr = if target.is_ipv4() {
        (IpAddr::from([0, 0, 0, 0]), 0).into()
    } else {
        (IpAddr::from([0_u16; 8]), 0).into()
    };
    let route = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(target)?;
        socket.local_addr()
    });
    match route {
        Ok(local) => local.ip().to_string(),
        Err(_) => host_name(),
    }
}

/// A worker that is known by a loopback address listens there alone.
pub(super) fn bind_address(host: &str) -> IpAddr {
    match host.parse::<IpAddr>() {
        Err(_) if host == "localhost" => IpAddr::from([127, 0, 0, 1]),
        Ok(address) if address.is_loopback() => address,
        Ok(address) if address.is_ipv6() => IpAddr::from([0_u16; 8]),
        _ => IpAddr::from([0, 0, 0, 0]),
    }
}

pub(super) fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn host_name() -> String {
    let from_kernel = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let name = from_kernel.unwrap_or_default().trim().to_owned();
    if name.is_empty() {
        "localhost".to_owned()
    } else {
        name
    }
}

/// Tells this process from every other one that was or will be.
fn incarnation() -> String {
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => format!("{:016x}", u64::from_le_bytes(bytes)),
        Err(_) => format!("pid-{}", std::process::id()),
    }
}
