//! No circles of modules: whoever reads a file goes down from it and never comes back to it.
//!
//! A module and those inside it are one house and may name each other; modules for tests are left out.

use std::collections::{BTreeMap, BTreeSet};

use crate::modules::{Module, Modules, child};
use crate::source;

/// A circle of so many modules is a pair: two files of one thought.
const PAIR: usize = 2;

/// Larger circles that stay. Less of one may stay, too; a circle that is here and wholly gone is an error.
const ALLOWED: &[Allowed] = &[];

/// A circle of modules that stays.
struct Allowed {
    package: &'static str,
    circle: &'static [&'static str],
    /// Read by whoever would add another.
    #[expect(dead_code, reason = "it is for readers")]
    because: &'static str,
}

/// The modules of a crate, and which other modules each of them names.
#[derive(Debug, Default)]
struct House {
    arrows: BTreeMap<Module, BTreeSet<Module>>,
}

impl House {
    /// Of a crate; modules for tests have no room in it.
    fn of(modules: &Modules) -> Self {
        let code = modules.files.iter().filter(|(module, _)| !modules.is_for_tests(module));
        let paths: BTreeMap<_, _> = code.map(|(module, file)| (module.clone(), source::paths(&file.code))).collect();
        let modules: BTreeSet<Module> = paths.keys().cloned().collect();
        let absolute = |module: &Module, path: &source::Path| {
            absolute([module.clone(), path.inside.clone()].concat(), &path.segments)
        };
        let mut faces = BTreeMap::new();
        for (module, path) in paths.iter().flat_map(|(module, paths)| paths.iter().map(move |path| (module, path))) {
            if let Some(name) = &path.exported {
                faces.insert(child(module, name), absolute(module, path));
            }
        }
        let arrows = paths.iter().map(|(module, paths)| {
            let named = paths.iter().map(|path| owner(absolute(module, path), &modules, &faces));
            (module.clone(), named.filter(|other| !other.starts_with(module) && !module.starts_with(other)).collect())
        });
        Self { arrows: arrows.collect() }
    }

    /// Every set of modules of which each leads to each.
    fn circles(&self) -> Vec<BTreeSet<Module>> {
        let mut search = Tarjan::of(&self.arrows);
        for module in self.arrows.keys() {
            if !search.index.contains_key(module) {
                search.visit(module);
            }
        }
        search.found.retain(|circle| circle.len() > 1);
        search.found
    }

    /// Every circle of more than a pair, of files and of folders, with its arrows.
    fn large_circles(&self) -> BTreeMap<BTreeSet<Module>, String> {
        let mut circles = BTreeMap::new();
        for house in self.floors().iter().chain([self]) {
            let large = house.circles().into_iter().filter(|circle| circle.len() > PAIR);
            circles.extend(large.map(|circle| (circle.clone(), house.within(&circle))));
        }
        circles
    }

    /// The same house, floor by floor: the modules within each module, each taken with all that is inside it.
    fn floors(&self) -> Vec<Self> {
        let parents: BTreeSet<&[String]> =
            self.arrows.keys().filter_map(|module| Some(module.split_last()?.1)).collect();
        let floor = |parent: &[String]| {
            let within = |module: &Module| {
                module.get(..=parent.len()).filter(|room| room.starts_with(parent)).map(<[String]>::to_vec)
            };
            let mut arrows: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
            for (module, others) in &self.arrows {
                let Some(room) = within(module) else { continue };
                let others = others.iter().filter_map(&within).filter(|other| *other != room);
                arrows.entry(room.clone()).or_default().extend(others);
            }
            Self { arrows }
        };
        parents.into_iter().map(floor).collect()
    }

    /// The arrows within a circle, to be read by whoever has to open it.
    fn within(&self, circle: &BTreeSet<Module>) -> String {
        let lines = circle.iter().map(|module| {
            let named = self.arrows[module].intersection(circle).map(|other| other.join("::")).collect::<Vec<_>>();
            format!("    {} -> {}", module.join("::"), named.join(", "))
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// A path from the crate's root, named within `module`.
fn absolute(module: Module, segments: &[String]) -> Module {
    let mut at = module;
    for segment in segments {
        match segment.as_str() {
            "crate" => at.clear(),
            "self" => {}
            "super" => drop(at.pop()),
            name => at.push(name.to_owned()),
        }
    }
    at
}

/// The module that a path from the root lies in, behind the faces that hand it on.
fn owner(mut path: Module, modules: &BTreeSet<Module>, faces: &BTreeMap<Module, Module>) -> Module {
    // A face hands on to another at most; a bound, so that two that name each other end.
    for _ in 0..8 {
        let Some((length, behind)) = (1..=path.len())
            .find_map(|length| Some((length, faces.get(&path[..length]).filter(|to| ***to != path[..length])?)))
        else {
            break;
        };
        path = [behind.as_slice(), &path[length..]].concat();
    }
    while !modules.contains(&path) && path.pop().is_some() {}
    path
}

/// Tarjan's search for strongly connected components.
struct Tarjan<'a> {
    arrows: &'a BTreeMap<Module, BTreeSet<Module>>,
    index: BTreeMap<&'a Module, usize>,
    low: BTreeMap<&'a Module, usize>,
    stack: Vec<&'a Module>,
    found: Vec<BTreeSet<Module>>,
}

impl<'a> Tarjan<'a> {
    fn of(arrows: &'a BTreeMap<Module, BTreeSet<Module>>) -> Self {
        Self { arrows, index: BTreeMap::new(), low: BTreeMap::new(), stack: Vec::new(), found: Vec::new() }
    }

    fn visit(&mut self, module: &'a Module) {
        let order = self.index.len();
        self.index.insert(module, order);
        self.low.insert(module, order);
        self.stack.push(module);
        for other in &self.arrows[module] {
            let Some((other, _)) = self.arrows.get_key_value(other) else { continue };
            let reached = if !self.index.contains_key(other) {
                self.visit(other);
                self.low[other]
            } else if self.stack.contains(&other) {
                self.index[other]
            } else {
                continue;
            };
            let low = self.low[module].min(reached);
            self.low.insert(module, low);
        }
        if self.low[module] == order {
            let from = self.stack.iter().position(|on| *on == module).expect("it is there");
            self.found.push(self.stack.drain(from..).cloned().collect());
        }
    }
}

#[test]
fn no_modules_run_in_a_circle() {
    let mut wrong = Vec::new();
    for package in crate::packages() {
        let house = House::of(&Modules::read(&package.folder.join("src")));
        let mut allowed: Vec<_> = ALLOWED.iter().filter(|allowed| allowed.package == package.name).collect();
        let mut seen = vec![false; allowed.len()];
        for (circle, arrows) in house.large_circles() {
            let known =
                allowed.iter().position(|allowed| circle.iter().all(|m| allowed.circle.contains(&&*m.join("::"))));
            match known {
                Some(known) => seen[known] = true,
                None => wrong.push(format!("{}: {} modules name each other:\n{arrows}", package.name, circle.len())),
            }
        }
        let mut seen = seen.into_iter();
        allowed.retain(|_| seen.next() == Some(false));
        let gone = allowed
            .into_iter()
            .map(|gone| format!("{}: take {:?} from the list, it is open", package.name, gone.circle));
        wrong.extend(gone);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn house(files: &[(&str, &str)]) -> House {
        let module = |path: &str| path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
        House::of(&Modules::of(files.iter().map(|(path, text)| (module(path), *text))))
    }

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let circles = house(files).circles();
        circles.iter().map(|circle| circle.iter().map(|m| m.join("::")).collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn a_circle_is_found_whichever_way_its_paths_are_written() {
        let files = [
            ("", ""),
            ("a", "use crate::b::X;"),
            ("b", "fn f() { super::c::g() }"),
            ("c", "use crate::{d, a::Y};"),
            ("d", ""),
        ];
        assert_eq!(circles(&files), ["a b c"]);
    }

    #[test]
    fn a_face_is_looked_through() {
        let files = [("", "pub use a::Y;"), ("a", "use crate::b::X;"), ("b", "use crate::c;"), ("c", "use crate::Y;")];
        assert_eq!(circles(&files), ["a b c"]);
    }

    #[test]
    fn folders_are_held_to_the_same() {
        let files = [("a", "use crate::b;"), ("a::x", ""), ("b", "use crate::c::y;"), ("c", ""), ("c::y", "")];
        let closed = [files.as_slice(), &[("c::z", "use crate::a::x;")]].concat();
        assert_eq!(house(&files).large_circles().len(), 0);
        let circles = house(&closed).large_circles();
        let expected: Vec<_> =
            circles.keys().map(|circle| circle.iter().flatten().cloned().collect::<Vec<_>>()).collect();
        assert_eq!(expected, [["a", "b", "c"]]);
    }

    #[test]
    fn parents_children_and_tests_make_none() {
        let files = [
            ("", "mod a; #[cfg(test)] mod t;"),
            ("a", "use crate::a::b::X;"),
            ("a::b", "use super::Y;"),
            ("c", "#[cfg(test)] mod tests { use crate::d::X; }"),
            ("d", "use crate::c::Y;"),
            ("t", "use crate::{c, d};"),
        ];
        assert_eq!(circles(&files), [""; 0]);
    }
}
