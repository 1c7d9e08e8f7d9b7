from tf_mlm.api import Run as Run
from tf_mlm.api import load as load
from tf_mlm.api import load_classifier as load_classifier
from tf_mlm.api import train as train
from tf_mlm.config import Config as Config
from tf_mlm.config import load_config as load_config
from tf_mlm.inference.loaded import LoadedClassifier as LoadedClassifier
from tf_mlm.inference.loaded import LoadedModel as LoadedModel

__all__: list[str]
__version__: str
