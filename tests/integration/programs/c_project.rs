//! A C project as a compiler, an archiver and make see it: hundreds of small files, and decisions by times of change.

use super::run;
use crate::support::machine::tool;
use crate::support::{Pair, Setup, assert_identical, e2fsck_clean, loop_mounted, tree, wait_until};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Libraries of the project.
const LIBRARIES: u64 = 12;
/// Sources of each library.
const SOURCES: u64 = 25;

const MAKEFILE: &str = r#"LIBRARIES := $(patsubst %/,%,$(wildcard lib*/))
OBJECTS := $(patsubst %.c,%.o,$(wildcard lib*/*.c) main.c)
ARCHIVES := $(foreach lib,$(LIBRARIES),$(lib)/$(lib).a)
CFLAGS := -O1 -Wall -Werror -Iinclude -MMD

program: main.o $(ARCHIVES)
	$(CC) -o $@.new main.o -Wl,--start-group $(ARCHIVES) -Wl,--end-group
	mv $@.new $@

%.o: %.c
	@echo compiling $<
	@$(CC) $(CFLAGS) -c -o $@ $<

.SECONDEXPANSION:
$(ARCHIVES): $$(patsubst %.c,%.o,$$(wildcard $$(@D)/*.c))
	rm -f $@
	$(AR) rcs $@ $^

-include $(OBJECTS:.o=.d)
"#;

/// What function `source` of `library` returns.
fn part(library: u64, source: u64, constant: u64) -> u64 {
    library * 1000 + source * 7 + constant
}

/// Writes the project; gives what its program prints. Each library has its own header with a constant.
fn generate(dir: &Path) -> u64 {
    let write = |path: String, text: String| {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, text).expect("a source");
    };
    write("Makefile".into(), MAKEFILE.into());
    let (mut includes, mut sum, mut printed) = (String::new(), String::new(), 0);
    for library in 0..LIBRARIES {
        let mut header = format!("#pragma once\n#include \"constant{library}.h\"\n");
        includes.push_str(&format!("#include \"lib{library}.h\"\n"));
        write(format!("include/constant{library}.h"), constant(library, library + 3));
        for source in 0..SOURCES {
            let name = format!("lib{library}_part{source}");
            header.push_str(&format!("unsigned long {name}(void);\n"));
            sum.push_str(&format!("    sum += {name}();\n"));
            printed += part(library, source, library + 3);
            // Something for the compiler to chew on, and a call into the next library's header.
            let text = format!(
                "#include <stddef.h>\n#include <string.h>\n#include \"lib{library}.h\"\n\n\
                 static const char text[] = \"{}\";\n\n\
                 unsigned long {name}(void)\n{{\n    unsigned long found = 0;\n    \
                 for (size_t at = 0; at < strlen(text); at++)\n        found += text[at] == '+';\n    \
                 return found + {library} * 1000 + CONSTANT_{library};\n}}\n",
                format!("{name} ").repeat(1 + source as usize * 3) + &"+".repeat(source as usize * 7),
            );
            write(format!("lib{library}/part{source}.c"), text);
        }
        write(format!("include/lib{library}.h"), header);
    }
    let text = format!(
        "#include <stdio.h>\n{includes}\nint main(void)\n{{\n    unsigned long sum = 0;\n{sum}    printf(\"%lu\\n\", sum);\n    return 0;\n}}\n"
    );
    write("main.c".into(), text);
    printed
}

fn constant(library: u64, value: u64) -> String {
    format!("#pragma once\n#define CONSTANT_{library} {value}\n")
}

fn make(dir: &Path) -> String {
    run(tool("make").current_dir(dir).env("LC_ALL", "C").args(["-j3", "--no-print-directory"]))
}

pub(super) fn c_project() {
    let mut pair = Pair::start(Setup { size: "512M", ..Setup::default() });
    let dir = pair.mnt().join("project");
    let printed = generate(&dir);
    let compiled = |output: &str| output.lines().filter(|line| line.starts_with("compiling ")).count() as u64;
    let runs =
        |dir: &Path| run(&mut Command::new(dir.join("program"))).trim().parse::<u64>().expect("a number");
    assert_eq!(compiled(&make(&dir)), LIBRARIES * SOURCES + 1);
    assert_eq!(runs(&dir), printed);
    assert!(make(&dir).contains("'program' is up to date"));
    // A header changes: its library is compiled again, and what includes all of them, nothing else.
    let header = dir.join("include/constant5.h");
    let modified =
        |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).expect("its time");
    wait_until("the header to be newer than the program", || {
        fs::write(&header, constant(5, 1000)).expect("the header");
        modified(&header) > modified(&dir.join("program"))
    });
    assert_eq!(compiled(&make(&dir)), SOURCES + 1);
    let printed = printed - SOURCES * 8 + SOURCES * 1000;
    assert_eq!(runs(&dir), printed);
    let wanted = tree::fingerprint(&dir);
    pair.sync();
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
    e2fsck_clean(&pair.mirror());
    // The mirror, mounted by the kernel, is the project as built: also for make, which goes by times.
    loop_mounted(&pair.mirror(), "ro,loop", |mnt| {
        let dir = mnt.join("project");
        tree::assert_same(&wanted, &tree::fingerprint(&dir));
        run(tool("make").current_dir(&dir).arg("-q"));
        assert_eq!(runs(&dir), printed);
    });
    pair.mount();
    tree::assert_same(&wanted, &tree::fingerprint(&dir));
    assert!(make(&dir).contains("'program' is up to date"));
    assert_eq!(runs(&dir), printed);
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
}
