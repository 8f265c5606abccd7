"""One LightningModule per stage of training."""
