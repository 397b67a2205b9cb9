package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/spf13/cobra"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/scheduler/placement"
)

// exitError ends the program with an exit code and without a message.
type exitError int

func (c exitError) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// databaseCommands are the commands that use only the database. Their exit codes are those of nova-manage and
// nova-status.
func (f *flags) databaseCommands() []*cobra.Command {
	manage := &cobra.Command{Use: "db", Short: "Manage the database"}
	manage.AddCommand(&cobra.Command{
		Use: "sync", Short: "Create the tables, or upgrade them", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.withDatabase(cmd.Context(), f.sync) },
	})
	upgrade := &cobra.Command{Use: "upgrade", Short: "Check before an upgrade"}
	upgrade.AddCommand(&cobra.Command{
		Use: "check", Args: noArguments,
		Short: "Check whether the services of this version can start. Exit codes: 0 = yes; 1 = yes, with warnings; 2 = no",
		RunE:  func(cmd *cobra.Command, _ []string) error { return f.withDatabase(cmd.Context(), f.checkUpgrade) },
	})
	var repair bool
	var minAge time.Duration
	audit := &cobra.Command{
		Use: "audit", Args: noArguments,
		Short: "Compare the claims on hosts with the servers. Exit codes: 0 = no difference; 3 = differences; 4 = differences, all repaired",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.withSchema(cmd.Context(), func(ctx context.Context, _ *options, d *sqlx.DB) error {
				return f.auditClaims(ctx, store.New(d), repair, minAge)
			})
		},
	}
	audit.Flags().BoolVar(&repair, "repair", false, "correct the claims that differ")
	audit.Flags().DurationVar(&minAge, "min-age", 5*time.Minute, "skip claims that have changed within this time, such as 90s: the server of a new claim may not be stored yet")
	claims := &cobra.Command{Use: "placement", Short: "Manage the claims on hosts"}
	claims.AddCommand(audit)
	return []*cobra.Command{manage, upgrade, claims}
}

// withDatabase calls do with the database of the configuration. If no connection is configured, it uses the SQLite file of the
// process with all services, if that file exists.
func (f *flags) withDatabase(ctx context.Context, do func(context.Context, *options, *sqlx.DB) error) error {
	o, err := f.load()
	if err != nil {
		return err
	}
	_ = o.logger() // sets the level
	connection := o.Database.Connection
	if connection == "" && o.StatePath != "" { // the database of the process with all services, if the file exists
		embedded, path, err := o.embedded()
		if err != nil {
			return err
		}
		if _, err := os.Stat(path); err == nil {
			connection = embedded
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the database of the embedded process: %w", err)
		}
	}
	cfg, err := o.databaseConfig(connection)
	if err != nil {
		return o.optionError("database", "connection", err)
	}
	d, err := db.Open(ctx, cfg)
	if err != nil {
		return o.optionError("database", "connection", err)
	}
	return errors.Join(do(ctx, o, d), d.Close())
}

// withSchema is like withDatabase, for commands that need the tables of this program's version.
func (f *flags) withSchema(ctx context.Context, do func(context.Context, *options, *sqlx.DB) error) error {
	return f.withDatabase(ctx, func(ctx context.Context, o *options, d *sqlx.DB) error {
		if _, err := db.Check(ctx, d, store.Migrations()...); err != nil {
			return err
		}
		return do(ctx, o, d)
	})
}

// embedded returns the URL and the file of the SQLite database that the process with all services uses.
func (o *options) embedded() (connection, path string, err error) {
	path, err = filepath.Abs(filepath.Join(o.StatePath, "nova.db"))
	return (&url.URL{Scheme: "sqlite", Path: path}).String(), path, err
}

func (f *flags) sync(ctx context.Context, _ *options, d *sqlx.DB) error {
	if err := db.Migrate(ctx, d, store.Migrations()...); err != nil {
		return err
	}
	_, err := fmt.Fprintln(f.out, "the database has the schema of this version")
	return err
}

func (f *flags) checkUpgrade(ctx context.Context, o *options, d *sqlx.DB) error {
	got := db.CheckUpgrade(ctx, db.SchemaCheck(d, store.Migrations()...), db.UpgradeCheck{
		Name: "Services",
		Run: func(ctx context.Context) (string, error) {
			services, err := store.New(d).Services(ctx, o.ServiceDownTime)
			var down []string
			for _, s := range services {
				if !s.Up && !s.Departed {
					down = append(down, s.Kind+" on "+s.Host)
				}
			}
			if len(down) == 0 {
				return "", err
			}
			return "no heartbeat for " + o.ServiceDownTime.String() + ": " + strings.Join(down, ", "), err
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

func (f *flags) auditClaims(ctx context.Context, s *store.Store, repair bool, minAge time.Duration) error {
	found, err := s.Audit(ctx, repair, minAge)
	repaired := 0
	for i := range found {
		state := "found"
		if one := &found[i]; one.Repaired {
			state = "repaired"
			repaired++
		} else if one.Err != nil {
			state = "not repaired: " + one.Err.Error()
		}
		if _, err := fmt.Fprintf(f.out, "%s: %s\n", describeFinding(&found[i]), state); err != nil {
			return err
		}
	}
	switch {
	case err != nil:
		return err
	case len(found) == 0:
		_, err = fmt.Fprintln(f.out, "no differences between claims and servers")
		return err
	case repaired == len(found):
		return exitError(4)
	}
	return exitError(3)
}

// describeFinding returns one line about a finding.
func describeFinding(f *placement.Finding) string {
	if f.Provider != nil {
		return f.Kind + " host " + f.Provider.ID
	}
	where := func(c *placement.Claim) string {
		var out []string
		for _, a := range c.Allocations {
			for _, class := range slices.Sorted(maps.Keys(a.Resources)) {
				out = append(out, fmt.Sprintf("%s %d", class, a.Resources[class]))
			}
			out = append(out, "on "+a.Provider)
		}
		return strings.Join(out, " ")
	}
	out := f.Kind + " claim of server " + f.Claim.Consumer + ": " + where(&f.Claim)
	if f.Want != nil {
		out += ", should be " + where(f.Want)
	}
	return out
}
