package hyper2kvmd

import (
	"context"
	"errors"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/daemon/store/sqlite"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/config"
)

func (d *command) backupCommand() *cli.Command {
	return &cli.Command{
		Name:      "backup",
		Usage:     "copy the jobs into a new file, also while the daemon runs",
		ArgsUsage: "FILE",
		Description: "To restore it, stop the daemon and put FILE as " + sqlite.FileName + " into the state folder, without the\n" +
			"files " + sqlite.FileName + "-wal and " + sqlite.FileName + "-shm of the old one,\n" +
			"and make it the daemon's user's (chown).",
		Action: d.backup,
	}
}

func (d *command) backup(ctx context.Context, cmd *cli.Command) error {
	if cmd.Args().Len() != 1 {
		return exit.UsageError(errors.New("backup takes one file"), "for instance: "+name+" backup jobs-backup.db")
	}
	dir, err := config.StateDir(d.flags(cmd), d.io.Getenv)
	if err != nil {
		return err
	}
	file := cmd.Args().First()
	if err := sqlite.Backup(ctx, dir, file); err != nil {
		return err
	}
	d.io.Success("Backed up the jobs of %s to %s", dir, file)
	return nil
}
