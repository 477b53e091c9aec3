//! A connection whose bytes are written and read as they are.

use std::{io, net::SocketAddr};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

use super::{PATIENCE, within};

/// One end of a connection, for clients and for backends.
#[derive(Debug)]
pub(crate) struct Wire<S = TcpStream> {
    pub(crate) stream: S,
    buffer: BytesMut,
}

/// The head of a message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    /// The request line or the status line.
    pub(crate) first: String,
    pub(crate) fields: Vec<(String, String)>,
}

/// A message with its body and trailers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
}

impl Head {
    fn parse(text: &str) -> Self {
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default().to_owned();
        let fields = lines.filter(|line| !line.is_empty()).map(field).collect();
        Self { first, fields }
    }

    /// The status of a response.
    pub(crate) fn status(&self) -> u16 {
        let status = self.first.split(' ').nth(1);
        status
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("no status line: {:?}", self.first))
    }

    /// The method of a request.
    pub(crate) fn method(&self) -> &str {
        self.first.split(' ').next().unwrap_or_default()
    }

    /// The target of a request.
    pub(crate) fn target(&self) -> &str {
        self.first.split(' ').nth(1).unwrap_or_default()
    }

    /// Every value of a field.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let fields = self.fields.iter();
        fields
            .filter(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| &**value)
            .collect()
    }

    /// The one value of a field.
    #[track_caller]
    pub(crate) fn one(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "more than one {name}: {all:?}");
        all.first().copied()
    }
}

fn field(line: &str) -> (String, String) {
    let (name, value) = line
        .split_once(':')
        .unwrap_or_else(|| panic!("no field line: {line:?}"));
    (name.to_owned(), value.trim().to_owned())
}

impl Message {
    pub(crate) fn status(&self) -> u16 {
        self.head.status()
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Wire {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = within("a connection", TcpStream::connect(address)).await;
        Self::new(stream.unwrap())
    }

    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: BytesMut::new(),
        }
    }

    /// Both directions on their own.
    pub(crate) fn split(self) -> (Wire<OwnedReadHalf>, OwnedWriteHalf) {
        let (stream, writer) = self.stream.into_split();
        let buffer = self.buffer;
        (Wire { stream, buffer }, writer)
    }

    /// Sends a request and reads its response.
    pub(crate) async fn ask(&mut self, request: impl AsRef<[u8]>) -> Message {
        self.send(request).await;
        self.response().await
    }
}

impl<S: AsyncWrite + Unpin> Wire<S> {
    /// Writes all of it; panics when the other side is gone.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.unwrap();
    }

    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await
    }

    /// Sends the end of the stream.
    pub(crate) async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }
}

impl<S: AsyncRead + Unpin> Wire<S> {
    /// Reads more; returns how much, 0 at the end. It does not wait forever.
    async fn more(&mut self) -> io::Result<usize> {
        timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await?
    }

    /// The next bytes, at most so many; empty at the end.
    pub(crate) async fn some(&mut self, most: usize) -> io::Result<Vec<u8>> {
        if self.buffer.is_empty() {
            self.more().await?;
        }
        let length = most.min(self.buffer.len());
        Ok(self.buffer.split_to(length).to_vec())
    }

    /// So many bytes.
    pub(crate) async fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            if self.more().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.buffer.split_to(length).to_vec())
    }

    /// Everything up to the end of the stream.
    pub(crate) async fn rest(&mut self) -> io::Result<Vec<u8>> {
        while self.more().await? > 0 {}
        Ok(self.buffer.split().to_vec())
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.buffer.split_to(end);
                self.buffer.advance(2);
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            if self.more().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The next head; `None` when the stream ends before it begins.
    pub(crate) async fn head(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let text = self.buffer.split_to(end + 4);
                return Ok(Some(Head::parse(&String::from_utf8_lossy(&text))));
            }
            if self.more().await? == 0 {
                if self.buffer.is_empty() {
                    return Ok(None);
                }
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The next chunk of a body; `None` for the last one.
    pub(crate) async fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.line().await?;
        let length = usize::from_str_radix(line.split(';').next().unwrap_or_default(), 16)
            .map_err(|_| io::Error::other(format!("no chunk size: {line:?}")))?;
        if length == 0 {
            return Ok(None);
        }
        let chunk = self.exactly(length).await?;
        assert_eq!(self.exactly(2).await?, b"\r\n");
        Ok(Some(chunk))
    }

    /// A body of chunks, and its trailers.
    pub(crate) async fn chunks(&mut self) -> io::Result<(Vec<u8>, Vec<(String, String)>)> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            body.extend(chunk);
        }
        let mut trailers = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok((body, trailers));
            }
            trailers.push(field(&line));
        }
    }

    /// The next request.
    pub(crate) async fn request(&mut self) -> io::Result<Option<Message>> {
        let Some(head) = self.head().await? else {
            return Ok(None);
        };
        self.body(head, false).await.map(Some)
    }

    /// The next response, to a request with a body in it.
    pub(crate) async fn response(&mut self) -> Message {
        let response = within("a response", self.try_response()).await;
        response.unwrap()
    }

    pub(crate) async fn try_response(&mut self) -> io::Result<Message> {
        match self.head().await? {
            Some(head) => self.body(head, true).await,
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The body that belongs to a head.
    pub(crate) async fn body(&mut self, head: Head, is_response: bool) -> io::Result<Message> {
        let is_empty = is_response && matches!(head.status(), 100..200 | 204 | 304);
        let (body, trailers) = if is_empty {
            (Vec::new(), Vec::new())
        } else if head.one("transfer-encoding").is_some() {
            self.chunks().await?
        } else if let Some(length) = head.one("content-length") {
            (self.exactly(length.parse().unwrap()).await?, Vec::new())
        } else if is_response {
            (self.rest().await?, Vec::new())
        } else {
            (Vec::new(), Vec::new())
        };
        Ok(Message {
            head,
            body,
            trailers,
        })
    }
}
