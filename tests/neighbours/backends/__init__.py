"""Other packages' backends with greenorm's mixin, as README shows it: each is a package that ENGINE names."""
