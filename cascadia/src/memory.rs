//! How much memory is left for KV pages.

use std::path::{Path, PathBuf};

/// Bytes that this process may still take: what the system has available, within the limits of the control groups it is
/// in. `None` where the system does not say.
#[must_use]
pub fn free() -> Option<u64> {
    let system = available(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(folders(&groups).iter().filter_map(|folder| left(folder)).fold(system, u64::min))
}

/// `MemAvailable` of `/proc/meminfo`.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

/// The control groups that bound a process, its own and all around it, by its `/proc/self/cgroup`: of both versions.
fn folders(groups: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let root = match controllers {
            "" => Path::new("/sys/fs/cgroup"),
            _ if controllers.split(',').any(|controller| controller == "memory") => Path::new("/sys/fs/cgroup/memory"),
            _ => continue,
        };
        // A container sees its own group as the root, whatever it is called outside.
        let groups = Path::new(group.trim_start_matches('/')).ancestors();
        folders.extend(groups.map(|group| root.join(group)));
    }
    folders
}

/// What a control group's limit leaves; `None` where it has none.
fn left(folder: &Path) -> Option<u64> {
    let number = |name: &str| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    // Pages of files that can go, such as those of the weights that were just read.
    let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let files = stat.lines().find_map(|line| {
        let line = line.strip_prefix("total_").unwrap_or(line);
        line.strip_prefix("inactive_file ")?.parse::<u64>().ok()
    });
    Some(limit.saturating_sub(used.saturating_sub(files.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says() {
        let meminfo = "MemTotal:       24595000 kB\nMemFree:  1 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(available(meminfo), Some(2048 * 1024));
        assert_eq!(available("MemTotal: 5 kB\n"), None);
        let paths = |groups: &str| folders(groups).iter().map(|f| f.display().to_string()).collect::<Vec<_>>();
        assert_eq!(paths("0::/a/b\n"), ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup/"]);
        assert_eq!(paths("5:cpu:/x\n4:memory,io:/\n"), ["/sys/fs/cgroup/memory/"]);
    }

    #[test]
    fn a_group_leaves_what_its_limit_does() {
        let folder = std::env::temp_dir().join(format!("cascadia-cgroup-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("room");
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        assert_eq!(left(&folder), None, "without a limit");
        write("memory.max", "1000\n");
        assert_eq!(left(&folder), Some(300));
        write("memory.stat", "anon 500\ninactive_file 150\n");
        assert_eq!(left(&folder), Some(450), "files that can go do not count");
        std::fs::remove_dir_all(&folder).expect("it goes");
    }
}
