//! What errors of the operating system say of an endpoint.

use std::io;

use super::Finding;

/// Errors of Linux and its relatives for what this machine has run out of: files of the process
/// (24) and of the system (23).
const OUT_OF_FILES: [i32; 2] = [24, 23];

/// What it says of an endpoint that the system refused or lost a connection to it.
pub(super) fn found(error: &io::Error) -> Finding {
    let is_own = error
        .raw_os_error()
        .is_some_and(|code| OUT_OF_FILES.contains(&code))
        || matches!(
            error.kind(),
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::OutOfMemory
        );
    if is_own {
        return Finding::inconclusive(error.to_string());
    }
    // What the system calls it is longer, and ends in a number.
    match error.raw_os_error() {
        Some(_) => Finding::fail(error.kind().to_string()),
        None => Finding::fail(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_machine_lacks_is_not_the_fault_of_an_endpoint() {
        for code in OUT_OF_FILES {
            let found = found(&io::Error::from_raw_os_error(code));
            assert!(matches!(found, Finding::Inconclusive(_)), "{found:?}");
        }
        let no_port = io::Error::from(io::ErrorKind::AddrNotAvailable);
        assert!(matches!(found(&no_port), Finding::Inconclusive(_)));
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(found(&refused), Finding::fail("connection refused"));
        let system = std::net::TcpStream::connect("127.0.0.1:1").unwrap_err();
        assert_eq!(found(&system), Finding::fail("connection refused"));
    }
}
