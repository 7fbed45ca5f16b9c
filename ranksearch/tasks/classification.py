"""Image classification: logits, cross-entropy with distillation, accuracy."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ranksearch.errors import UserError


def require_logits(output: object, num_classes: int) -> None:
    """Raise unless a network answers one image with logits.

    Args:
        output: the network's output for a batch of one.
        num_classes: classes of the data set.

    Raises:
        UserError: the output is of another type or shape.
    """
    if not isinstance(output, Tensor) or output.shape != (1, num_classes):
        actual = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"the model returns {actual} for one image: return logits of shape {[1, num_classes]}")


def loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Compute the mean cross-entropy of logits `[B, C]`, in nats."""
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def soft_targets(logits: Tensor, temperature: float) -> Tensor:
    """Return the logarithms of a teacher's predictions, softened by a temperature, `[B, C]`."""
    return F.log_softmax(logits.float() / temperature, dim=1)


def distillation_loss(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Compute the divergence of logits `[B, C]` from `soft_targets`.

    The factor of the squared temperature keeps its gradients on the scale of the labels' (Hinton et al., 2015).
    """
    student = F.log_softmax(logits / temperature, dim=1)
    return F.kl_div(student, targets, reduction="batchmean", log_target=True) * temperature**2


@dataclass
class Metric:
    """Accuracy and mean cross-entropy, accumulated over batches."""

    seen: int = 0
    correct: int = 0
    total_loss: float = 0.0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits `[B, C]`, labels `[B]`."""
        self.seen += len(labels)
        self.correct += int((logits.argmax(1) == labels).sum())
        self.total_loss += float(F.cross_entropy(logits, labels, reduction="sum"))

    def compute(self) -> tuple[float, float]:
        """Return accuracy, 0 to 1, and mean loss over all batches."""
        return self.correct / max(self.seen, 1), self.total_loss / max(self.seen, 1)
