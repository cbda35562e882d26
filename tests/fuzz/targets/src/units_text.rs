//! Sizes and times of the command line.

use crate::units::{parse_duration, parse_size, show_ms, show_size};
use crate::{Input, mutate};
use std::time::Duration;

const WORDS: [&str; 24] = [
    "0", "1", "9", "512", "10", "1.5", ".", "-", "+", "e", "E308", "nan", "inf", "K", "M", "G", "T", "iB",
    "B", "ms", "s", "m", "h", " ",
];

/// What is read is within the bounds that the messages name, and means the same when it is written as a plain number.
pub(crate) fn run(input: &mut Input<'_>) {
    let mut text: Vec<u8> = Vec::new();
    for _ in 0..1 + input.below(5) {
        text.extend_from_slice(input.pick(&WORDS).as_bytes());
    }
    if input.once_in(3) {
        mutate::stream(input, &mut text);
    }
    let text = String::from_utf8_lossy(&text);
    if let Ok(bytes) = parse_size(&text) {
        input.count("size");
        assert_eq!(parse_size(&bytes.to_string()), Ok(bytes), "{text:?}");
        let _words = show_size(bytes);
    }
    if let Ok(time) = parse_duration(&text) {
        input.count("time");
        assert!(
            (Duration::from_micros(999)..=Duration::from_secs(86_400)).contains(&time),
            "{text:?}: {time:?}"
        );
    }
    let (bytes, ms) = (input.number(), input.number());
    assert!(!show_size(bytes).is_empty() && !show_ms(ms).is_empty());
}
