"""Where a fit takes its data from: arguments, loaders, array files, tensors on the device; all at one batch a step."""
