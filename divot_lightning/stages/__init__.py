"""Training stages, one LightningModule each, named as in the paper."""
