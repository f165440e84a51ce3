"""What differs between audits of models: releases, stages of training, dense against mixture, family against family."""

from quantaudit.common.verbs import make_callable

make_callable(__name__)
