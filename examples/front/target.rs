//! A file that a program in front of the nodes reads: written whole, checked by the program itself,
//! and loaded only when it says something new.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use tokio::{fs, io::AsyncWriteExt as _, process::Command, time::timeout};

use super::render::{self, Server};

/// How long a program may take to check a file, or to load it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A program in front of the nodes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Program {
    /// nginx, which includes the file in its `http` block.
    Nginx,
    /// HAProxy, which listens at this address and has no other file.
    Haproxy(SocketAddr),
}

/// A file of a program.
#[derive(Debug)]
pub(crate) struct Target {
    program: Program,
    service: String,
    file: PathBuf,
    /// What the shell runs to have the file loaded.
    reload: String,
    /// The text that the program refused last: it is not asked again.
    refused: Option<String>,
    /// Whether the file is newer than what is loaded.
    is_due: bool,
}

/// What became of a list of servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The file says so already.
    Same,
    /// There is no server: the file stays as it is.
    Empty,
    /// The program refuses the file that it would be, for this reason.
    Refused(String),
    /// The file was written and loaded.
    Loaded,
    /// The file was written and could not be loaded, for this reason: the next step tries again.
    NotLoaded(String),
}

impl Target {
    pub(crate) fn new(program: Program, service: &str, file: PathBuf, reload: &str) -> Self {
        Self {
            program,
            service: service.to_owned(),
            file,
            reload: reload.to_owned(),
            refused: None,
            is_due: false,
        }
    }

    /// Brings the file to these servers.
    pub(crate) async fn apply(&mut self, servers: &[Server]) -> io::Result<Step> {
        if servers.is_empty() {
            return Ok(Step::Empty);
        }
        let text = match self.program {
            Program::Nginx => render::nginx(&self.service, servers),
            Program::Haproxy(listen) => render::haproxy(&self.service, listen, servers),
        };
        if fs::read_to_string(&self.file).await.ok().as_ref() != Some(&text) {
            if self.refused.as_ref() == Some(&text) {
                return Ok(Step::Same);
            }
            if let Err(reason) = self.replace(&text).await? {
                self.refused = Some(text);
                return Ok(Step::Refused(reason));
            }
            self.refused = None;
            self.is_due = true;
        }
        if !self.is_due {
            return Ok(Step::Same);
        }
        let mut reload = Command::new("sh");
        reload.arg("-c").arg(&self.reload);
        Ok(match run(&mut reload).await? {
            Ok(()) => {
                self.is_due = false;
                Step::Loaded
            }
            Err(reason) => Step::NotLoaded(reason),
        })
    }

    /// Writes the text beside the file, and in its place once the program takes it. Who reads the
    /// file sees the old one or the new one.
    async fn replace(&self, text: &str) -> io::Result<Result<(), String>> {
        let folder = match self.file.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        // A name that no pattern such as *.conf includes.
        let candidate = tempfile::Builder::new()
            .prefix(".front-")
            .suffix(".new")
            .tempfile_in(folder)?;
        let path = candidate.path().canonicalize()?;
        let mut file = fs::File::options().write(true).open(&path).await?;
        file.write_all(text.as_bytes()).await?;
        file.sync_all().await?;
        if let Err(reason) = self.program.check(&path).await? {
            return Ok(Err(reason));
        }
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        fs::set_permissions(&path, readable).await?;
        candidate.persist(&self.file)?;
        Ok(Ok(()))
    }
}

impl Program {
    /// What the program itself says of a file.
    async fn check(self, file: &Path) -> io::Result<Result<(), String>> {
        match self {
            Self::Nginx => {
                // A part of a configuration is checked within one.
                let scratch = tempfile::tempdir()?;
                let whole = scratch.path().join("nginx.conf");
                let text = format!(
                    "pid check.pid;\nevents {{}}\nhttp {{ access_log off; include \"{}\"; }}\n",
                    file.display()
                );
                fs::write(&whole, text).await?;
                let mut nginx = Command::new("nginx");
                let nginx = nginx.args(["-t", "-q", "-e", "stderr", "-p"]);
                run(nginx.arg(scratch.path()).arg("-c").arg(whole)).await
            }
            Self::Haproxy(_) => {
                let mut haproxy = Command::new("haproxy");
                run(haproxy.args(["-c", "-q", "-f"]).arg(file)).await
            }
        }
    }
}

/// Runs a command; what it said, if it was not content.
async fn run(command: &mut Command) -> io::Result<Result<(), String>> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let Ok(output) = timeout(PATIENCE, output).await else {
        return Ok(Err("it takes too long".to_owned()));
    };
    let Output { status, stderr, .. } = output?;
    if status.success() {
        return Ok(Ok(()));
    }
    let said = String::from_utf8_lossy(&stderr).trim().to_owned();
    Ok(Err(format!("{status}: {said}")))
}
