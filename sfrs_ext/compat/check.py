"""Runs a copy of a layer beside its fused form: finds the recipe, or says why there is none."""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .cases import EQUAL, cases, in_layout, in_memory, maps, masks, randomise, randomise_tensors, unmistakable
from .compare import TOLERANCE, NoAnswer, are_close, difference, disagreement, first_line, remembers
from .forms import LAYOUTS, WAYS, Form, Layout, Lists, Mask, order_of, results_for
from .fused import Signature, fused_class, respond
from .memory import Memory, undisturbed
from .recipe import Recipe
from .structure import Reading, readings, scales, units


def find_recipe(layer: nn.Module) -> Recipe | str:
    """The recipe by which the fused form equals the layer, or why none does."""
    with undisturbed(layer) as memory:
        try:
            twin = copy.deepcopy(layer)
            shared = _addresses(twin) & _addresses(layer)
        except Exception as error:  # whatever somebody else's layer holds
            return f"it cannot be copied for the check: {first_line(error)}"
        if shared:
            return "its copy shares tensors with it, so that it cannot be tried out"
        try:
            found, names = Check(twin).recipe(), memory.changed()
            fused_class(type(layer))  # which some classes refuse, and some make a note of
        except Exception as error:  # as above
            return f"it cannot be run beside the fused form: {first_line(error)}"
        return remembers(names) if names and isinstance(found, Recipe) else found


def _addresses(layer: nn.Module) -> set[int]:
    held = [value for module in layer.modules() for value in vars(module).values()]
    tensors = [t for t in (*layer.parameters(), *layer.buffers(), *held) if isinstance(t, Tensor)]
    return {t.untyped_storage().data_ptr() for t in tensors if t.layout == torch.strided and t.numel()}


class Check:
    """A float64 copy of a layer with random parameters, and what is found out about it."""

    def __init__(self, twin: nn.Module):
        self.twin = twin.to("cpu", torch.float64).eval()
        self.signature = Signature(type(twin).forward)
        self.generator = torch.Generator().manual_seed(0)
        self.complaints: list[tuple[int, str]] = []  # the less, the nearer to NetVLAD
        self.not_run: dict[str, str] = {}
        randomise(self.twin, self.generator)

    def recipe(self) -> Recipe | str:
        memory, complaints = Memory(self.twin), []
        for found in self._matches():
            complaint = self._complaint(found)
            if names := memory.changed():
                return remembers(names)
            if not complaint:
                return self._with_arguments(self._with_lists(self._with_forms(found)))
            complaints.append(complaint)
        return complaints[0] if complaints else self._why_none()

    def _matches(self) -> Iterator[Recipe]:
        """Readings, forms of input and options that give the copy's own result; notes why others do not."""
        dims = dict.fromkeys(reading.dim for reading in readings(self.twin))
        for layout, dim in itertools.product(LAYOUTS, dims):
            features = unmistakable(dim, self.generator)
            x, images = in_layout(features, layout), layout.images(features)
            try:
                with torch.no_grad():
                    theirs, orders, used = self.twin.forward(x), self._orders(x, layout), self._used(x)
            except Exception as error:  # a layer that takes another layout raises anything
                self.not_run.setdefault(layout.text, first_line(error))
                continue
            for reading in (reading for reading in readings(self.twin, used) if reading.dim == dim):
                if reading.extras:
                    extras = ", ".join(reading.extras)
                    self.complaints.append((2, f"it uses more than a NetVLAD layer's tensors: {extras}"))
                    continue
                best, closest = float("inf"), None
                for recipe in self._candidates(reading, layout, images, theirs, orders):
                    error = difference(self._respond(recipe, x), theirs)
                    if error <= TOLERANCE:
                        yield recipe
                    best, closest = min((best, closest), (error, recipe), key=lambda pair: pair[0])
                if closest is None:
                    form = list(theirs.shape) if isinstance(theirs, Tensor) else f"a {type(theirs).__name__}"
                    complaint = 1, f"not NetVLAD: its result is {form}, not a descriptor per image"
                else:
                    nearest = f"{closest.kind} with {closest.steps}, differs by {best:.0e}"
                    complaint = 0, f"not NetVLAD: the closest, {nearest}"
                self.complaints.append(complaint)

    def _why_none(self) -> str:
        places = "; ".join(f"on {text} ({error})" for text, error in [*self.not_run.items()][:3])
        not_run = 3, f"it does not run {places}"
        return min(self.complaints, default=not_run, key=lambda complaint: complaint[0])[1]

    def _candidates(
        self, reading: Reading, layout: Layout, images: int, theirs: Any, orders: tuple
    ) -> Iterator[Recipe]:
        """Every recipe that gives a result of the right shape."""
        clusters = theirs.numel() // (images * reading.dim) if isinstance(theirs, Tensor) else 0
        if not 1 <= clusters <= reading.columns:
            return
        results = results_for(layout, (images, clusters, reading.dim), theirs.shape)
        ghosts = reading.columns - clusters
        plain = Recipe(clusters=clusters, ghost_clusters=ghosts, dim=reading.dim, **reading.parts)
        factors = [(None, False), *itertools.product(scales(self.twin), (False, True))]
        norms = itertools.product((True, False), repeat=3)
        for result, (scale, divides), (first, intra, last) in itertools.product(results, factors, norms):
            recipe = replace(plain, forms=(Form(layout, result, orders),), scale=scale, scale_divides=divides)
            yield replace(recipe, normalize_input=first, intra_norm=intra, l2_norm=last)

    def _used(self, x: Tensor) -> set[str]:
        """The copy's units that get a gradient, be it of zeros, or that change results."""
        layer = copy.deepcopy(self.twin)
        with torch.enable_grad():
            result = layer.forward(x)
            if isinstance(result, Tensor) and result.requires_grad:
                result.sum().backward()
        reached = [name for name, parameter in layer.named_parameters() if parameter.grad is not None]
        used = {part for name in reached for part in (name, name.partition(".")[0])}
        for training, unit in itertools.product((False, True), units(self.twin)):
            results = []
            for other_values in (False, True):
                layer = copy.deepcopy(self.twin).train(training)
                if other_values:
                    _randomise_unit(layer, unit, self.generator)
                # For layers that draw; torch.manual_seed would set CUDA's too.
                torch.default_generator.manual_seed(0)
                results.append(layer.forward(x))
            used |= set() if are_close(*results, tolerance=0) else {unit}
        return used

    def _orders(self, x: Tensor, layout: Layout) -> tuple:
        """Of the dimensions of the result in memory, for both orders of the input."""
        results = [self._attempt(view) for view in in_memory(x, layout)]
        orders = [order_of(result) for result in results if isinstance(result, Tensor)]
        return (*orders, *orders)[:2]

    def _complaint(self, recipe: Recipe) -> str | None:
        """What differs on any of the inputs, in evaluation and training, for the recipe's only form."""
        layout = recipe.forms[0].layout
        for what, features, factor in cases(recipe.dim, self.generator):
            x = in_layout(features, layout)
            modes = (False,) if what in EQUAL and recipe.batch_norm else (False, True)
            for view, training in itertools.product((x,) if what else in_memory(x, layout), modes):
                try:
                    complaint = disagreement(self.twin, recipe, view, {}, training, factor)
                except NoAnswer as reason:  # a layer may have none for what is special, or for a view
                    complaint = None if what or not view.is_contiguous() else str(reason)
                if complaint:
                    return f"{complaint}, for {what}" if what else complaint
        return None

    def _with_forms(self, recipe: Recipe) -> Recipe:
        """Add every other form of input on which the layer runs, fused where that agrees."""
        forms = [*recipe.forms]
        for layout in (layout for layout in LAYOUTS if layout != recipe.forms[0].layout):
            features = unmistakable(recipe.dim, self.generator)
            x = in_layout(features, layout)
            sizes = (layout.images(features), recipe.clusters, recipe.dim)
            found = results_for(layout, sizes, getattr(self._attempt(x), "shape", ()))
            trials = [_only(recipe, Form(layout, result, self._orders(x, layout))) for result in found]
            agreed = (r.forms[0] for r in trials if self._agrees(r, x) and not self._complaint(r))
            if found:
                self._insert(recipe, forms, next(agreed, Form(layout, None)))
        return replace(recipe, forms=tuple(forms))

    def _insert(self, recipe: Recipe, forms: list[Form], form: Form) -> None:
        """Put a form before those that yield to it where an input fits both."""
        for index, other in enumerate(forms):
            if other.layout.rank != form.layout.rank:
                continue
            shape = [2] * form.layout.rank
            shape[form.layout.channels] = shape[other.layout.channels] = recipe.dim
            x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
            if not self._agrees(_only(recipe, other), x):
                agrees = self._agrees(_only(recipe, form), x)
                forms.insert(index, form if agrees else Form(form.layout, None))
                return
        forms.append(form)

    def _with_lists(self, recipe: Recipe) -> Recipe:
        """Add how the layer takes several inputs at once."""
        for layout, numbers in itertools.product(LAYOUTS, ((0, 1), (0, 0))):
            xs = [in_layout(unmistakable(recipe.dim, self.generator, of), layout) for of in numbers]
            if self._attempt(xs) is None and self._attempt(tuple(xs)) is None:
                continue
            for result, way in itertools.product(results_for(layout), WAYS):
                order = tuple(range(result.count(",") + 1))
                for kinds in ((list, tuple), (list,), (tuple,)):
                    trial = replace(recipe, lists=Lists(Form(layout, result, (order, order)), way, kinds))
                    if all(self._agrees(trial, kind(xs)) for kind in kinds):
                        return trial
            return replace(recipe, unforeseen=("lists",))
        return recipe

    def _with_arguments(self, recipe: Recipe) -> Recipe:
        """Add which further arguments change nothing, and which one weighs the positions.

        Values are tried only for arguments that are usually absent: what a flag or the name of a file makes a
        layer do is not to be found out by doing it.
        """
        unforeseen = [*recipe.unforeseen, *self.signature.variable]
        for name in self.signature.others:
            tried = self.signature.defaults.get(name, name) is None
            if name in self.signature.unread or (tried and self._ignores(recipe, name)):
                recipe = replace(recipe, ignored=(*recipe.ignored, name))
            elif tried and recipe.mask is None and (forms := self._masks(recipe, name)):
                recipe = replace(recipe, mask=name, masks=forms)
            else:
                unforeseen.append(name)
        return replace(recipe, unforeseen=tuple(unforeseen))

    def _ignores(self, recipe: Recipe, name: str) -> bool:
        layout = recipe.forms[0].layout
        x = in_layout(maps(recipe.dim, self.generator), layout)
        plain, trial = self._attempt(x), replace(recipe, ignored=(name,))
        tensors = [m for form in Mask.all(layout) for m in masks(form, x, self.generator)]
        same = all(are_close(self._attempt(x, **{name: v}), plain, tolerance=0) for v in (*tensors, object()))
        return same and self._agrees(trial, x, **{name: tensors[0]})

    def _masks(self, recipe: Recipe, name: str) -> tuple[Mask, ...]:
        found = []
        for form in (form for form in recipe.forms if form.result):
            x = in_layout(maps(recipe.dim, self.generator), form.layout)
            for mask in Mask.all(form.layout):
                trial = replace(recipe, forms=(form,), mask=name, masks=(mask,))
                if all(self._agrees(trial, x, **{name: m}) for m in masks(mask, x, self.generator)):
                    found.append(mask)
        return tuple(found)

    def _agrees(self, recipe: Recipe, x: object, **arguments) -> bool:
        """Whether the copy runs and its fused form gives the same, in evaluation and in training."""
        theirs = self._attempt(x, **arguments)
        if theirs is None or not are_close(self._respond(recipe, x, **arguments), theirs):
            return False
        try:
            return not any(disagreement(self.twin, recipe, x, arguments, mode) for mode in (False, True))
        except NoAnswer:
            return False

    @torch.no_grad()
    def _attempt(self, x: object, **arguments) -> object:
        """The copy's result, or None where it does not run."""
        try:
            return self.twin.forward(x, **arguments)
        except Exception:  # what a layer raises that takes no such input
            return None

    @torch.no_grad()
    def _respond(self, recipe: Recipe, x: object, **arguments) -> object:
        return respond(self.twin, recipe, self.signature, (x,), arguments)


def _only(recipe: Recipe, form: Form) -> Recipe:
    return replace(recipe, forms=(form,))


def _randomise_unit(layer: nn.Module, unit: str, generator: torch.Generator) -> None:
    """Give one of `sfrs_ext.compat.structure.units` other values, in place."""
    name, _, inner = unit.partition(".")
    child = layer._modules.get(name)
    if child is None:
        randomise_tensors(layer, generator, only=name)
    elif inner:
        randomise_tensors(child, generator, only=inner)
    else:
        for module in child.modules():
            randomise_tensors(module, generator)
