from tf_mlm.cli import leave, main

if __name__ == "__main__":
    leave(main())
