//! The scripts in `contrib`, as far as they can be judged without a mount.

#![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const README: &str = "# Before\n\
    <!-- image-judges: begin (written by contrib/image-judges from its logs) -->\n\
    an older table\n\
    <!-- image-judges: end -->\n\
    After\n";

fn image_judges(arguments: &[&Path]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/image-judges");
    Command::new("bash").arg(script).arg("table").args(arguments).output().unwrap()
}

/// Writes the table of these logs; gives the file and whether the script was content.
fn table(logs: &[(&str, &str)]) -> (String, bool) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in logs {
        fs::write(dir.path().join(format!("{name}.log")), text).unwrap();
    }
    let readme = dir.path().join("README.md");
    fs::write(&readme, README).unwrap();
    let output = image_judges(&[dir.path(), &readme]);
    (fs::read_to_string(&readme).unwrap(), output.status.success())
}

const JUDGED: [(&str, &str); 4] = [
    (
        "pjdfstest",
        "| pjdfstest, the kernel's ext4 | 402 | 3 | 0 | 9 s |\n\
         | pjdfstest, mirrorfs async | 401 | 0 | 1 | 20 s |\n\
         | pjdfstest, mirrorfs sync | 401 | 0 | 1 | 21 s |\n\
         \nexcepted: pjdfstest link::link_count_max: the reason\nimage-judges: exit code 0\n",
    ),
    ("every-barrier", "every-barrier: barriers=512 states=10240 failed=0\nimage-judges: exit code 0\n"),
    (
        "fuzz",
        "fuzz: target=label cases=100 failed=0\nfuzz: target=wire cases=23 failed=0 {}\nimage-judges: exit code 0\n",
    ),
    (
        "programs",
        "programs::x is SKIPPED: no x\ntest result: ok. 6 passed; 0 failed; 1 ignored; 0 measured; 90 filtered out\n\
         image-judges: exit code 0\n",
    ),
];

#[test]
fn the_judges_table_comes_from_their_logs() {
    let (text, content) = table(&JUDGED);
    assert!(content, "{text}");
    let rows: Vec<&str> = text.lines().filter(|line| line.ends_with(" |")).collect();
    let figures: Vec<&str> = rows.iter().skip(1).map(|row| row.splitn(3, '|').nth(2).unwrap()).collect();
    assert_eq!(figures, [" 802 | 0 | 2 |", " 10240 | 0 | 0 |", " 123 | 0 | 0 |", " 6 | 0 | 1 |"], "{text}");
    assert!(text.contains("- excepted: pjdfstest link::link_count_max: the reason\n"), "{text}");
    assert!(text.contains("- excepted: programs::x is SKIPPED: no x\n"), "{text}");
    assert!(
        text.starts_with("# Before\n") && text.ends_with("<!-- image-judges: end -->\nAfter\n"),
        "{text}"
    );
    assert!(!text.contains("an older table"), "{text}");
}

#[test]
fn what_failed_or_broke_off_is_failed_in_the_table() {
    for (name, log) in [
        ("every-barrier", "every-barrier: barriers=512 states=10240 failed=2\nimage-judges: exit code 101\n"),
        // Broken off: counted as far as it came, and failed.
        ("kills", "kills: done=17 failed=0\n"),
        ("fuzz", "fuzz: target=label cases=100 failed=0\nimage-judges: exit code 1\n"),
        // Nothing was run.
        (
            "faults-below",
            "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured\nimage-judges: exit code 0\n",
        ),
        ("databases", "image-judges: exit code 101\n"),
    ] {
        let (text, content) = table(&[JUDGED[3], (name, log)]);
        let failed = text.lines().filter(|line| line.ends_with(" |")).any(|row| {
            let column = row.split('|').nth(3).unwrap().trim();
            column.parse::<u64>().is_ok_and(|failed| failed > 0)
        });
        assert!(failed && !content, "{name}: {text}");
    }
}

#[test]
fn a_file_without_marks_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("kills.log"), "kills: done=3 failed=0\nimage-judges: exit code 0\n").unwrap();
    let readme = dir.path().join("README.md");
    fs::write(&readme, "no marks\n").unwrap();
    let output = image_judges(&[dir.path(), &readme]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(fs::read_to_string(&readme).unwrap(), "no marks\n");
}
