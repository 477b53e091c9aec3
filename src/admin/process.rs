//! What the process uses, under the names that every client library of Prometheus gives it.
//!
//! It comes from `/proc`; where there is none, the page has nothing of it.

use std::fs;

use super::page::Page;

/// Ticks of the clock in a second, as Linux shows times to programs.
const TICKS: f64 = 100.0;

pub(super) fn metrics(page: &mut Page) {
    let read = |file| fs::read_to_string(file).ok();
    let stat = read("/proc/self/stat");
    let stat = stat.as_deref().and_then(Stat::parse);
    let cpu = stat.as_ref().map(|stat| stat.cpu);
    let boot = read("/proc/stat").and_then(|text| field(&text, "btime"));
    let start = boot.zip(stat).map(|(boot, stat)| boot + stat.start);
    let memory = read("/proc/self/status").and_then(|text| field(&text, "VmRSS:"));
    let memory = memory.map(|kib| kib * 1024.0);
    let limit = read("/proc/self/limits").and_then(|text| field(&text, "Max open files"));
    let figures = [
        (
            "process_cpu_seconds_total",
            "counter",
            "Time of processors used.",
            cpu,
        ),
        (
            "process_start_time_seconds",
            "gauge",
            "When the process began, since 1970.",
            start,
        ),
        (
            "process_resident_memory_bytes",
            "gauge",
            "Memory in use.",
            memory,
        ),
        (
            "process_open_fds",
            "gauge",
            "Open file descriptors.",
            open_files(),
        ),
        (
            "process_max_fds",
            "gauge",
            "Open file descriptors that there may be.",
            limit,
        ),
    ];
    for (name, kind, help, figure) in figures {
        if let Some(figure) = figure {
            page.standard(name, kind, help, figure);
        }
    }
}

/// The size of the folder tells since Linux 6.2; before, its entries are counted.
fn open_files() -> Option<f64> {
    const FOLDER: &str = "/proc/self/fd";
    let size = fs::metadata(FOLDER).ok()?.len();
    if size > 0 {
        return Some(size as f64);
    }
    Some(fs::read_dir(FOLDER).ok()?.count() as f64)
}

/// Two fields of `/proc/self/stat`, in seconds.
#[derive(Debug, PartialEq)]
struct Stat {
    /// In programs and in the system.
    cpu: f64,
    /// After the system began.
    start: f64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name of the program, in parentheses, may have spaces and parentheses in it.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // The third field of the file is the first here.
        let seconds = |number: usize| Some(fields.get(number - 3)?.parse::<f64>().ok()? / TICKS);
        Some(Self {
            cpu: seconds(14)? + seconds(15)?,
            start: seconds(22)?,
        })
    }
}

/// The first number of the line that begins with a word.
fn field(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found_behind_any_name() {
        let text = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 13 14 15 16 17 18 123400 20 21\n";
        let expected = Stat {
            cpu: 3.0,
            start: 1234.0,
        };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("42 (a) S 1"), None);
        let status = "Name:\ta\nVmRSS:\t  2048 kB\n";
        assert_eq!(field(status, "VmRSS:"), Some(2048.0));
        let limits = "Max open files            1024                 524288               files\n";
        assert_eq!(field(limits, "Max open files"), Some(1024.0));
        assert_eq!(field("Max open files  unlimited\n", "Max open files"), None);
    }
}
