//! Looking at the file and reading it. Blocks.

use std::{
    fs::{self, Metadata},
    io::{self, Read as _},
    path::Path,
    time::Duration,
};

use super::settle::{Mark, Seen};
use crate::{
    discover::{Listing, Refused, listing},
    yaml,
};

/// The most bytes that are read of a file.
const MAX_BYTES: u64 = 16 << 20;

/// A file that was not written to for this long is finished.
const AT_REST: Duration = Duration::from_secs(1);

/// What is there, and whether it is at rest by the wall clock.
pub(super) fn look(path: &Path) -> (Seen, bool) {
    match regular(fs::metadata(path)) {
        Ok(metadata) => {
            let modified = metadata.modified().ok();
            let age = modified.and_then(|modified| modified.elapsed().ok());
            let at_rest = age.is_some_and(|age| age >= AT_REST);
            (Seen::File(mark(&metadata)), at_rest)
        }
        Err(error) => (Seen::Nothing(error.to_string()), false),
    }
}

/// Reads the file when it is still what the look found; nothing when it changed meanwhile.
///
/// The inner error says what is wrong in the file.
pub(super) fn read(path: &Path, expected: &Mark) -> io::Result<Option<Result<Listing, String>>> {
    let file = fs::File::open(path)?;
    if mark(&regular(file.metadata())?) != *expected {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    (&file).take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if mark(&file.metadata()?) != *expected {
        return Ok(None);
    }
    Ok(Some(parse(bytes)))
}

fn parse(bytes: Vec<u8>) -> Result<Listing, String> {
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("expected at most {} MiB", MAX_BYTES >> 20));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("line {line}: expected UTF-8")
    })?;
    let read = yaml::parse(&text).and_then(|node| listing::endpoints(&node));
    let (endpoints, refused) = read.map_err(|mistakes| mistakes.to_string().replace('\n', "; "))?;
    let refused = refused.into_iter().map(|refused| {
        let entry = format!("line {}: {}", refused.line, refused.entry);
        Refused::new(entry, refused.reason).of(refused.entry)
    });
    Ok(Listing::new(endpoints).refused(refused.collect::<Vec<_>>()))
}

/// A pipe or a device would block for ever.
fn regular(metadata: io::Result<Metadata>) -> io::Result<Metadata> {
    let metadata = metadata?;
    if !metadata.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    Ok(metadata)
}

#[cfg(unix)]
fn mark(metadata: &Metadata) -> Mark {
    use std::os::unix::fs::MetadataExt as _;

    Mark {
        modified: metadata.modified().ok(),
        length: metadata.len(),
        file: Some((metadata.dev(), metadata.ino())),
        changed: Some((metadata.ctime(), metadata.ctime_nsec())),
    }
}

#[cfg(not(unix))]
fn mark(metadata: &Metadata) -> Mark {
    Mark {
        modified: metadata.modified().ok(),
        length: metadata.len(),
        file: None,
        changed: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_garbled_file_is_named_by_line_key_and_expectation() {
        for (text, expected) in [
            ("", "line 1: expected a list"),
            ("users: []", "line 1: expected a list"),
            ("- address: \"a:1\n", "line "),
        ] {
            let error = parse(text.into()).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        let error = parse(b"- x\n- \xff".to_vec()).unwrap_err();
        assert_eq!(error, "line 2: expected UTF-8");
    }

    #[test]
    fn a_bad_entry_is_refused_and_the_others_are_used() {
        let text =
            "- address: 10.0.0.1:80\n- address: 10.0.0.2\n- address: 10.0.0.3:80\n  wieght: 2\n";
        let listing = parse(text.into()).unwrap();
        assert_eq!(listing.endpoints.len(), 1);
        let refused = listing
            .refused
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>();
        assert!(refused[0].starts_with("line 2: 10.0.0.2: "), "{refused:?}");
        assert!(refused[0].contains("expected host:port"), "{refused:?}");
        assert!(refused[1].contains("wieght"), "{refused:?}");
    }

    #[test]
    fn a_file_that_is_too_long_is_refused() {
        let error = parse(vec![b' '; (MAX_BYTES + 1) as usize]).unwrap_err();
        assert_eq!(error, "expected at most 16 MiB");
    }

    #[test]
    fn a_folder_and_a_changed_file_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            look(folder.path()),
            (Seen::Nothing("not a regular file".into()), false)
        );
        let path = folder.path().join("endpoints.yaml");
        fs::write(&path, "- address: 10.0.0.1:80").unwrap();
        let (Seen::File(seen), false) = look(&path) else {
            panic!("a file that was just written");
        };
        fs::write(&path, "[]").unwrap();
        assert!(read(&path, &seen).unwrap().is_none());
    }
}
