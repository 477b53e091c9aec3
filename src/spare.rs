//! Memory of requests that are over, for the next ones of the thread: what each would have to
//! allocate anew.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
    thread::LocalKey,
};

use http::Extensions;

/// How much of one kind a thread keeps.
const MOST: usize = 32;

/// What a thread keeps of one kind.
#[derive(Debug)]
pub(crate) struct Spares<T>(RefCell<Vec<T>>);

impl<T> Spares<T> {
    pub(crate) const fn none() -> Self {
        Self(RefCell::new(Vec::new()))
    }
}

fn take<T>(spares: &'static LocalKey<Spares<T>>) -> Option<T> {
    // There are none any more when a thread ends.
    let spare = spares.try_with(|spares| spares.0.borrow_mut().pop());
    spare.ok().flatten()
}

fn give<T>(spares: &'static LocalKey<Spares<T>>, spare: T) {
    let given = spares.try_with(|spares| {
        let mut spares = spares.0.borrow_mut();
        if spares.len() < MOST {
            spares.push(spare);
        }
    });
    given.ok();
}

/// Something of which a thread keeps the memory.
pub(crate) trait Spared: Sized + 'static {
    /// Where it is kept.
    fn spares() -> &'static LocalKey<Spares<Box<Self>>>;

    /// Ends its use; returns whether it is worth to be kept, and holds nothing of others.
    fn end(&mut self) -> bool;
}

/// In a box that goes back to the thread.
#[derive(Debug)]
pub(crate) struct Spare<T: Spared>(Option<Box<T>>);

impl<T: Spared> Spare<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(match take(T::spares()) {
            Some(mut spare) => {
                *spare = value;
                spare
            }
            None => Box::new(value),
        }))
    }

    /// One as somebody has left it, or a blank one.
    pub(crate) fn left() -> Self
    where
        T: Default,
    {
        Self(Some(take(T::spares()).unwrap_or_default()))
    }
}

const HELD: &str = "it is given back when it is dropped";

impl<T: Spared> Deref for Spare<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect(HELD)
    }
}

impl<T: Spared> DerefMut for Spare<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect(HELD)
    }
}

impl<T: Spared> Drop for Spare<T> {
    fn drop(&mut self) {
        if let Some(mut value) = self.0.take()
            && value.end()
        {
            give(T::spares(), value);
        }
    }
}

thread_local! {
    static EXTENSIONS: Spares<Extensions> = const { Spares::none() };
}

/// A map without extensions.
pub(crate) fn extensions() -> Extensions {
    take(&EXTENSIONS).unwrap_or_default()
}

/// Takes the map of a request that is over.
#[cfg_attr(
    not(feature = "client"),
    allow(dead_code, reason = "the upstream client gives them")
)]
pub(crate) fn give_extensions(mut extensions: Extensions) {
    const USUAL: usize = 16;
    // A map that had nothing in it has no memory either.
    if (1..=USUAL).contains(&extensions.len()) {
        extensions.clear();
        give(&EXTENSIONS, extensions);
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Number {
        uses: u32,
    }

    thread_local! {
        static NUMBERS: Spares<Box<Number>> = const { Spares::none() };
    }

    impl Spared for Number {
        fn spares() -> &'static LocalKey<Spares<Box<Self>>> {
            &NUMBERS
        }

        fn end(&mut self) -> bool {
            self.uses += 1;
            self.uses < 3
        }
    }

    fn kept() -> usize {
        NUMBERS.with(|spares| spares.0.borrow().len())
    }

    #[test]
    fn memory_is_used_again_while_it_is_worth_it() {
        drop(Spare::<Number>::left());
        assert_eq!(kept(), 1);
        let again = Spare::<Number>::left();
        assert_eq!((again.uses, kept()), (1, 0));
        drop(again);
        drop(Spare::new(Number { uses: 2 }));
        assert_eq!(kept(), 0);
    }

    #[test]
    fn a_thread_keeps_no_more_than_it_may_need() {
        let many: Vec<_> = (0..2 * MOST).map(|_| Spare::<Number>::left()).collect();
        drop(many);
        assert_eq!(kept(), MOST);
    }

    #[test]
    fn extensions_come_back_empty() {
        let mut extensions = Extensions::new();
        extensions.insert(7_u8);
        give_extensions(extensions);
        give_extensions(Extensions::new());
        assert_eq!(EXTENSIONS.with(|spares| spares.0.borrow().len()), 1);
        assert!(super::extensions().is_empty());
    }
}
