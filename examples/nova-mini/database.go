package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jmoiron/sqlx"
	"github.com/spf13/cobra"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

// exitError ends the program with a code, and nothing to say.
type exitError int

func (c exitError) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// databaseCommands are for upgrades.
func (f *flags) databaseCommands() []*cobra.Command {
	manage := &cobra.Command{Use: "db", Short: "Work on the database"}
	manage.AddCommand(&cobra.Command{
		Use: "sync", Short: "Make the tables, or bring them up to date", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.withDatabase(cmd.Context(), f.sync) },
	})
	upgrade := &cobra.Command{Use: "upgrade", Short: "Before the services of a new version start"}
	upgrade.AddCommand(&cobra.Command{
		Use: "check", Args: cobra.NoArgs,
		Short: "Look whether they can: exit code 0 they can, 1 they can, with warnings, 2 they must not",
		RunE:  func(cmd *cobra.Command, _ []string) error { return f.withDatabase(cmd.Context(), f.checkUpgrade) },
	})
	return []*cobra.Command{manage, upgrade}
}

func (f *flags) withDatabase(ctx context.Context, do func(context.Context, *options, *sqlx.DB) error) error {
	o, err := f.load()
	if err != nil {
		return err
	}
	n := &node{options: o, log: o.logger()}
	d, err := n.open(ctx, o.Database.Connection)
	if err != nil {
		return err
	}
	return errors.Join(do(ctx, o, d), d.Close())
}

func (f *flags) sync(ctx context.Context, _ *options, d *sqlx.DB) error {
	if err := db.Migrate(ctx, d, store.Migrations()); err != nil {
		return err
	}
	_, err := fmt.Fprintln(f.out, "the database is up to date")
	return err
}

func (f *flags) checkUpgrade(ctx context.Context, o *options, d *sqlx.DB) error {
	got := db.CheckUpgrade(ctx, db.SchemaCheck(d, store.Migrations()), db.UpgradeCheck{
		Name: "Services",
		Run: func(ctx context.Context) (string, error) {
			services, err := store.New(d).Services(ctx, o.ServiceDownTime)
			var down []string
			for _, s := range services {
				if !s.Up {
					down = append(down, s.Binary+" on "+s.Host)
				}
			}
			if len(down) == 0 {
				return "", err
			}
			return "not seen for " + o.ServiceDownTime.String() + ": " + strings.Join(down, ", "), err
		},
	})
	if err := got.Print(f.out); err != nil {
		return err
	}
	if code := got.ExitCode(); code > 0 {
		return exitError(code)
	}
	return nil
}
