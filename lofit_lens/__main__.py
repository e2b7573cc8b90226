from lofit_lens.cli import main

main()
