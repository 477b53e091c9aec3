//! What hyper answers by itself to what is no request, as a problem document. PURE.

use http::StatusCode;

/// How the fields of such an answer begin. Those of a service stand before the ones of hyper.
const BARE: &str = "connection: close\r\ncontent-length: 0\r\ndate: ";

/// The end of a head.
const END: &str = "\r\n\r\n";

/// The longest that such an answer is.
const LONGEST: usize = 256;

/// The same answer with a document (RFC 9457) that says why, if these bytes are such an answer and
/// nothing else.
pub(super) fn problem(bytes: &[u8]) -> Option<Vec<u8>> {
    // Nearly everything that is written is told from it by its length or the digit of its status.
    if bytes.len() > LONGEST || bytes.get(9) != Some(&b'4') {
        return None;
    }
    let (line, fields) = std::str::from_utf8(bytes).ok()?.split_once("\r\n")?;
    let status = line.strip_prefix("HTTP/1.1 ")?.get(..3)?;
    let (status, reason, detail) = match status {
        "400" => (
            StatusCode::BAD_REQUEST,
            "bad_request",
            "the head of the request is malformed or ambiguous",
        ),
        "414" => (
            StatusCode::URI_TOO_LONG,
            "too_large",
            "the target of the request is too long",
        ),
        "431" => (
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "too_large",
            "the head of the request is too large",
        ),
        _ => return None,
    };
    let date = fields.strip_prefix(BARE)?.strip_suffix(END)?;
    if date.contains('\r') {
        return None;
    }
    let title = status.canonical_reason().unwrap_or_default();
    let number = status.as_str();
    let document = format!(
        r#"{{"title":"{title}","status":{number},"reason":"{reason}","detail":"{detail}"}}"#
    );
    let length = document.len();
    let head = format!(
        "{line}\r\ncontent-type: application/problem+json\r\nconnection: close\r\n\
         content-length: {length}\r\ndate: {date}{END}"
    );
    Some((head + &document).into_bytes())
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    const DATE: &str = "date: Sun, 06 Nov 1994 08:49:37 GMT";

    #[test]
    fn an_answer_of_hyper_gets_a_document() {
        for line in [
            "HTTP/1.1 400 Bad Request",
            "HTTP/1.1 414 URI Too Long",
            "HTTP/1.1 431 Request Header Fields Too Large",
        ] {
            let bare =
                format!("{line}\r\nconnection: close\r\ncontent-length: 0\r\n{DATE}\r\n\r\n");
            let whole = String::from_utf8(problem(bare.as_bytes()).unwrap()).unwrap();
            let (head, document) = whole.split_once(END).unwrap();
            let length = format!("content-length: {}", document.len());
            let fields: Vec<_> = head.split("\r\n").collect();
            assert_eq!(
                fields,
                [
                    line,
                    "content-type: application/problem+json",
                    "connection: close",
                    &length,
                    DATE
                ]
            );
            let title = &line[13..];
            let begin = format!(r#"{{"title":"{title}","status":{},"#, &line[9..12]);
            assert!(document.starts_with(&begin), "{document}");
        }
    }

    #[test]
    fn all_else_is_left_alone() {
        for other in [
            "",
            "HTTP/1.1 400 Bad Request\r\n",
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\ndate: x\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\na: b\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\nmore",
            "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 2\r\ndate: x\r\n\r\nok",
        ] {
            assert_eq!(problem(other.as_bytes()), None, "{other}");
        }
    }
}
