"""Composes a training from its configs, as projects laid out like this one do."""

import sys
from pathlib import Path

import hydra
import lightning as L

sys.path.insert(0, str(Path(__file__).parent.parent))


@hydra.main(version_base="1.3", config_path="../configs", config_name="train.yaml")
def main(cfg):
    L.seed_everything(cfg.seed)
    datamodule = hydra.utils.instantiate(cfg.data)
    model = hydra.utils.instantiate(cfg.model)
    callbacks = [hydra.utils.instantiate(node) for node in cfg.callbacks.values()]
    trainer = hydra.utils.instantiate(cfg.trainer, callbacks=callbacks)
    trainer.fit(model=model, datamodule=datamodule)
    path = trainer.checkpoint_callback.best_model_path
    trainer.test(model=model, datamodule=datamodule, ckpt_path=path, weights_only=False)


if __name__ == "__main__":
    main()
