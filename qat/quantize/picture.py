"""Picture of a forward pass: its products, its calls, and where they stand."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from qat.quantize.values import Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a counted torch function.

    Attributes:
        number: position among all counted calls of the forward pass.
        function: its name, see `call_sites.COUNTED`.
        frames: the modules whose forward runs, outermost first, each with the number of its call.
        channels: length of the second axis of its first operand.
        stays_float: whether that is the image, or made of no image at all.
        ceiling: of a ReLU, its upper end; None if it has none.
        is_activation: whether it is a ReLU, up to a ceiling.
    """

    number: int
    function: str
    frames: tuple[tuple[str, int], ...]
    channels: int | None = None
    stays_float: bool = False
    ceiling: float | None = None
    is_activation: bool = False

    @property
    def module(self) -> str:
        """The innermost module."""
        return self.frames[-1][0] if self.frames else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One multiplication of the network; what is repeated in one place is one product.

    Attributes:
        number: by which `Value.after` names it.
        module: the innermost module whose forward makes it.
        function: torch function that makes it, or the operator.
        weight: the operand that is made of parameters, or takes a weight's place in the function;
            None for a product of two activations.
        inputs: the other operand, or both.
        place: which argument of the function the input is; None if it is none of its own.
        is_own_input: whether the input is the one tensor that entered the module, which nothing
            else there reads or gives back.
        macs: multiply-accumulates per image.
        call: of the function; None if it is no counted one.
        is_first: whether the image enters it, and no product with a weight is before it.
        is_last: whether no further product with a weight is behind it.
        weight_shape: shape of the weight, as it enters.
        has_zero_weights: of a weight that is made, whether some row holds zeros and others, or a
            mask is set on it.
    """

    number: int
    module: str
    function: str
    weight: Value | None
    inputs: tuple[Value, ...]
    place: int | None
    is_own_input: bool
    macs: int
    call: Call | None
    is_first: bool
    is_last: bool
    weight_shape: tuple[int, ...] = ()
    has_zero_weights: bool = False

    @property
    def has_made_weight(self) -> bool:
        """Whether its weight is a function of parameters, or of the image, and none as it is."""
        return self.weight is not None and self.weight.through != ""

    @property
    def mixed_parameters(self) -> frozenset[str]:
        """The parameters that something of the image mixes into its weight."""
        weight = self.weight
        return frozenset() if weight is None or not weight.is_of_image else weight.mixed


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What one forward pass has shown.

    Attributes:
        products: in the order of execution.
        calls: counted calls, in the order of execution.
        module_calls: dotted name -> how often the module was called.
        overwritten: modules and functions that changed a tensor in place which was read again
            afterwards, other than through what they gave.
        mixed: parameters that enter activations entry by entry, as biases and gains do.
    """

    products: tuple[Product, ...]
    calls: tuple[Call, ...]
    module_calls: Mapping[str, int]
    overwritten: tuple[str, ...]
    mixed: frozenset[str]

    def owner(self, call: Call) -> str:
        """The innermost module around a call that runs once: it counts the call's sites."""
        names = [name for name, _ in call.frames if self.module_calls[name] == 1]
        return names[-1] if names else ""

    def count(self, call: Call, owner: str, *, without: Collection[str] = ()) -> int:
        """How many calls of the same function `owner` leads to before this one.

        Args:
            call: of the picture.
            owner: a module around it that runs once.
            without: modules whose calls do not count.
        """
        return sum(
            earlier.function == call.function
            and any(name == owner for name, _ in earlier.frames)
            and not any(name in without for name, _ in earlier.frames)
            for earlier in self.calls[: call.number]
        )
