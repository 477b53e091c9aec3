//! Several sockets of one address.

use std::{io, net::TcpListener};

/// As many further sockets on the address of the first one, over which the operating system spreads
/// clients.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn siblings(first: &TcpListener, count: usize) -> io::Result<Vec<TcpListener>> {
    use socket2::{Domain, Protocol, SockRef, Socket, Type};

    /// As long as that of the first one.
    const BACKLOG: i32 = 128;

    let address = first.local_addr()?;
    // Only now: it was bound without, so nobody else had the address; and who is started on it by
    // mistake hears that it is in use.
    SockRef::from(first).set_reuse_port(true)?;
    let sibling = || {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    (0..count).map(|_| sibling()).collect()
}

/// None: elsewhere, one of the sockets would get all clients.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn siblings(_: &TcpListener, _: usize) -> io::Result<Vec<TcpListener>> {
    Ok(Vec::new())
}
