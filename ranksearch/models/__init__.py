"""Network builders that `conf/model` points at."""

from ranksearch.models.cifar import CifarResNet, cifar_resnet
from ranksearch.models.classifiers import timm_classifier, torchvision_classifier

__all__ = ["CifarResNet", "cifar_resnet", "timm_classifier", "torchvision_classifier"]
