package component

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/spf13/cobra"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/membership"
)

// databaseCommand returns the command db, whose subcommands are about the tables.
func (t *Tool[O]) databaseCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "db", Short: "Manage the database"}
	cmd.AddCommand(&cobra.Command{
		Use: "sync", Short: "Create the tables, or upgrade them", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.withDatabase(cmd.Context(), func(ctx context.Context, _ *loadedOptions[O], d *sqlx.DB) error {
				if err := db.Migrate(ctx, d, t.r.c.migrations()...); err != nil {
					return err
				}
				return t.done(map[string]any{"synced": true}, "the database has the schema of this version")
			})
		},
	}, &cobra.Command{
		Use: "check", Args: noArguments,
		Short: "Check whether the services of this version can start. Exit codes: 0 = yes; 1 = yes, with warnings; 2 = no",
		RunE:  func(cmd *cobra.Command, _ []string) error { return t.CheckDatabase(cmd.Context()) },
	})
	return cmd
}

// CheckDatabase does what the command "db check" does, for a component that offers the check under a second name. The error is an [ExitError]
// if the exit code is not 0.
func (t *Tool[O]) CheckDatabase(ctx context.Context) error {
	return t.withDatabase(ctx, t.checkUpgrade)
}

func (t *Tool[O]) checkUpgrade(ctx context.Context, l *loadedOptions[O], d *sqlx.DB) error {
	schema := db.SchemaCheck(d, t.r.c.migrations()...)
	check := schema.Run
	schema.Run = func(ctx context.Context) (string, error) {
		warning, err := check(ctx)
		return warning, l.nameSync(err)
	}
	got := db.CheckUpgrade(ctx, schema, db.UpgradeCheck{
		Name: "Services",
		Run: func(ctx context.Context) (string, error) {
			if _, err := db.Check(ctx, d, packageMigrations...); errors.Is(err, fault.Precondition) {
				return "not checked without the schema", nil
			}
			found, err := membership.New(membership.Config{DB: d, DownAfter: l.base.ServiceDownTime}).List(ctx, "")
			var down []string
			for i := range found {
				if m := &found[i]; !m.Up && !m.Departed {
					down = append(down, m.Kind+" on "+m.Host)
				}
			}
			if len(down) == 0 {
				return "", err
			}
			return "no heartbeat for " + l.base.ServiceDownTime.String() + ": " + strings.Join(down, ", "), err
		},
	})
	type result struct {
		Check   string `json:"check"`
		Result  string `json:"result"`
		Details string `json:"details"`
	}
	var data []result
	var rows [][]string
	for _, one := range got {
		r := result{one.Name, "Success", one.Warning}
		switch {
		case one.Err != nil:
			r.Result, r.Details = "Failure", one.Err.Error()
		case one.Warning != "":
			r.Result = "Warning"
		}
		data = append(data, r)
		rows = append(rows, []string{r.Check, r.Result, r.Details})
	}
	if err := t.Print([]string{"check", "result", "details"}, rows, data); err != nil {
		return err
	}
	if code := got.ExitCode(); code > 0 {
		return ExitError(code)
	}
	return nil
}

// placementCommand returns the command placement, which compares the claims on hosts with their consumers.
func (t *Tool[O]) placementCommand() *cobra.Command {
	var repair bool
	var minAge time.Duration
	audit := &cobra.Command{
		Use: "audit", Args: noArguments,
		Short: "Compare the claims on hosts with their consumers. Exit codes: 0 = no difference; 3 = differences; 4 = differences, all repaired",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.WithDatabase(cmd.Context(), func(ctx context.Context, _ *O, d *sqlx.DB) error {
				found, err := t.r.c.Audit(ctx, d, repair, minAge)
				return errors.Join(err, t.printFindings(found, err))
			})
		},
	}
	audit.Flags().BoolVar(&repair, "repair", false, "correct the claims that differ")
	audit.Flags().DurationVar(&minAge, "min-age", 5*time.Minute, "skip claims that have changed within this time, such as 90s: the consumer of a new claim may not be stored yet")
	cmd := &cobra.Command{Use: "placement", Short: "Manage the claims on hosts"}
	cmd.AddCommand(audit)
	return cmd
}

// findingView is a finding with the error of its repair.
type findingView struct {
	placement.Finding

	Error string `json:"error,omitempty"`
}

// printFindings prints the findings of an audit, even if the audit has failed. If the audit has not failed and has findings,
// printFindings returns the exit code as an ExitError.
func (t *Tool[O]) printFindings(found []placement.Finding, failed error) error {
	if len(found) == 0 && failed == nil && t.f.output == formatTable {
		_, err := fmt.Fprintln(t.Out, "no differences")
		return err
	}
	repaired := 0
	var rows [][]string
	data := []findingView{}
	for i := range found {
		state, view := "found", findingView{Finding: found[i]}
		if one := &found[i]; one.Repaired {
			state = "repaired"
			repaired++
		} else if one.Err != nil {
			view.Error = one.Err.Error()
			state = "not repaired: " + view.Error
		}
		data = append(data, view)
		rows = append(rows, []string{found[i].Kind, describeFinding(&found[i]), state})
	}
	err := t.Print([]string{"kind", "claim", "state"}, rows, data)
	switch {
	case err != nil || failed != nil || len(found) == 0:
		return err
	case repaired == len(found):
		return ExitError(4)
	}
	return ExitError(3)
}

// describeFinding returns one line about a finding.
func describeFinding(f *placement.Finding) string {
	if f.Provider != nil {
		return "host " + f.Provider.ID
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
	out := f.Claim.Consumer + ": " + where(&f.Claim)
	if f.Want != nil {
		out += ", should be " + where(f.Want)
	}
	return out
}

// memberCommand returns the command member, which manages the registered services.
func (t *Tool[O]) memberCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "member", Short: "Manage registered services"}
	var force bool
	remove := &cobra.Command{
		Use: "remove KIND HOST", Short: "Remove a service whose process no longer exists", Args: cobra.ExactArgs(2),
		RunE: t.withMembers(func(ctx context.Context, members *membership.Registry, args []string) error {
			if err := checkKind(ctx, members, args[0]); err != nil {
				return err
			}
			if force {
				if err := members.ForceDown(ctx, args[0], args[1], true); err != nil {
					return err
				}
			}
			if err := members.Remove(ctx, args[0], args[1]); errors.Is(err, fault.Precondition) {
				return fmt.Errorf("%w: wait until it is down, or use --force if its process no longer exists", err)
			} else if err != nil {
				return err
			}
			return t.done(map[string]any{"kind": args[0], "host": args[1], "removed": true}, "%s on host %s is removed", args[0], args[1])
		}),
	}
	remove.Flags().BoolVar(&force, "force", false, "also remove a service that is up: first make sure that its process no longer exists")
	cmd.AddCommand(&cobra.Command{
		Use: "list", Short: "List the services: whether each is up, what it serves, and its process (-: not known, because several processes may run this service)", Args: noArguments,
		RunE: t.withMembers(func(ctx context.Context, members *membership.Registry, _ []string) error {
			found, err := members.List(ctx, "")
			if err != nil {
				return err
			}
			views := describeMembers(found)
			return t.Print(memberColumns, memberRows(views), views)
		}),
	}, remove)
	return cmd
}

// checkKind refuses a kind that no member has. If there are no members, it accepts every kind.
func checkKind(ctx context.Context, members *membership.Registry, kind string) error {
	found, err := members.List(ctx, "")
	kinds := map[string]bool{}
	for i := range found {
		kinds[found[i].Kind] = true
	}
	if err != nil || len(kinds) == 0 || kinds[kind] {
		return err
	}
	return unknownName("kind", kind, slices.Values(slices.Sorted(maps.Keys(kinds))))
}

// withMembers returns the function of a command that needs the registry.
func (t *Tool[O]) withMembers(do func(ctx context.Context, members *membership.Registry, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		return t.WithDatabase(cmd.Context(), func(ctx context.Context, o *O, d *sqlx.DB) error {
			return do(ctx, membership.New(membership.Config{DB: d, DownAfter: findOptions[Options](o).ServiceDownTime}), args)
		})
	}
}

// memberView is a member as the commands show it.
type memberView struct {
	Kind       string              `json:"kind"`
	Host       string              `json:"host"`
	State      string              `json:"state"`
	Seen       time.Time           `json:"seen_at"`
	Interfaces map[string][]string `json:"interfaces"`
	Why        string              `json:"why,omitempty"`
	Process    string              `json:"process,omitempty"`
}

// memberColumns are the columns of a table of members.
var memberColumns = []string{"kind", "host", "state", "seen", "serves", "why", "process"}

// describeMembers returns members as the commands show them.
func describeMembers(found []membership.Member) []memberView {
	out := []memberView{}
	for i := range found {
		m := &found[i]
		v := memberView{m.Kind, m.Host, "down", m.SeenAt, m.Interfaces, m.Unfit(), m.Instance.Process}
		if m.Up {
			v.State = "up"
		}
		out = append(out, v)
	}
	return out
}

// memberRows returns the rows of a table of members. No cell is empty, so that a program finds each column by its number.
func memberRows(members []memberView) (rows [][]string) {
	for _, v := range members {
		var serves []string
		for _, name := range slices.Sorted(maps.Keys(v.Interfaces)) {
			serves = append(serves, name+" "+strings.Join(v.Interfaces[name], " "))
		}
		rows = append(rows, []string{v.Kind, v.Host, v.State, v.Seen.Format(time.RFC3339), cmp.Or(strings.Join(serves, ", "), "-"), cmp.Or(v.Why, "-"), cmp.Or(v.Process, "-")})
	}
	return rows
}
