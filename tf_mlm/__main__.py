from tf_mlm.commands.main import console

if __name__ == "__main__":
    console()
