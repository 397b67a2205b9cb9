package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/auth"
	"github.com/armature-go/armature/service/config"
	"github.com/armature-go/armature/service/policy"
)

// configCommand has the commands about options.
func (f *flags) configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Print a sample of all options, or check a configuration"}
	var of []string
	var online bool
	validate := &cobra.Command{
		Use: "validate", Args: noArguments,
		Short: "Check the configuration without the network: print all errors, or the value and the place of each option",
		PreRunE: func(*cobra.Command, []string) error {
			for _, s := range of {
				if known := append([]string{allInOneService}, services...); !slices.Contains(known, s) {
					return unknownName("service", s, slices.Values(known))
				}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return f.validate(cmd.Context(), of, online) },
	}
	validate.Flags().StringSliceVar(&of, "service", services, "services that use the files; all-in-one: all services in one process")
	validate.Flags().BoolVar(&online, "online", false, "also connect to the bus, the database, Keystone and the driver, and check the database's schema")
	cmd.AddCommand(&cobra.Command{
		Use: "sample", Short: "Print a file with all options", Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return config.Sample(f.out, new(settings), f.defaults()) },
	}, validate)
	return cmd
}

// validate prints the files that are read, and the value and the place of each option. The error has one line for each fault.
func (f *flags) validate(ctx context.Context, of []string, online bool) error {
	c, err := config.Inspect[settings](f.source())
	if c == nil {
		return err
	}
	w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
	for _, path := range c.Files() {
		_, _ = fmt.Fprintf(w, "read %s\n", path) // Flush returns the error
	}
	o, herr := f.options(c)
	if err := errors.Join(err, herr, o.validate(of...)); err != nil {
		return errors.Join(err, w.Flush())
	}
	if online {
		if err := o.checkOnline(ctx, w, of); err != nil {
			return errors.Join(err, w.Flush())
		}
	}
	for _, v := range c.Values() {
		_, _ = fmt.Fprintf(w, "[%s]\t%s\t%s\t%s\n", v.Section, v.Name, v.Value, v.Where) // Flush returns the error
	}
	return w.Flush()
}

// onlineTimeout is how long each service that an option names may take to answer.
const onlineTimeout = 10 * time.Second

// errNotTried is the result for an option that has no effect because of the other options.
var errNotTried = errors.New("not tried")

// checkOnline connects to each service that the options name. The error has one line for each service that does not work.
func (o *options) checkOnline(ctx context.Context, w io.Writer, of []string) error {
	var errs []error
	for _, a := range []struct {
		of, section, option string
		ask                 func(ctx context.Context) error
	}{
		{"api conductor scheduler compute", "DEFAULT", "transport_url", o.askBus},
		{"api conductor scheduler", "database", "connection", o.askDatabase},
		{"api all-in-one", "keystone_authtoken", "auth_url", o.askKeystone},
		{"compute all-in-one", "DEFAULT", "compute_driver", o.askDriver},
	} {
		if !slices.ContainsFunc(strings.Fields(a.of), func(s string) bool { return slices.Contains(of, s) }) {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, onlineTimeout)
		switch err := a.ask(ctx); {
		case errors.Is(err, errNotTried):
			_, _ = fmt.Fprintf(w, "not tried: [%s] %s: not in use\n", a.section, a.option) // Flush returns the error
		case err != nil:
			errs = append(errs, o.optionError(a.section, a.option, err))
		default:
			_, _ = fmt.Fprintf(w, "works: [%s] %s\n", a.section, a.option) // Flush returns the error
		}
		cancel()
	}
	return errors.Join(errs...)
}

// quiet is the logger of the ask functions, which return errors and do not log them.
var quiet = slog.New(slog.DiscardHandler)

func (o *options) askBus(ctx context.Context) error {
	bus, err := o.openBus(quiet)
	if err != nil {
		return err
	}
	if err = bus.Start(ctx); err == nil {
		err = errors.Join(bus.Check(ctx), bus.Stop(ctx))
	}
	return err
}

func (o *options) askDatabase(ctx context.Context) error {
	cfg, err := o.databaseConfig(o.Database.Connection)
	if err != nil {
		return err
	}
	d, err := db.Open(ctx, cfg)
	if err != nil {
		return err
	}
	_, err = db.Check(ctx, d, store.Migrations()...)
	return errors.Join(err, d.Close())
}

func (o *options) askKeystone(ctx context.Context) error {
	who, err := o.identity(quiet, nil)
	if err != nil {
		return err
	}
	if who.part == nil {
		return errNotTried
	}
	defer who.part.Stop(ctx)                     //nolint:errcheck // it closes idle connections
	return who.part.(service.Checker).Check(ctx) //nolint:forcetypeassert // auth.Keystone is a Checker
}

func (o *options) askDriver(ctx context.Context) error {
	cfg, err := o.driverConfig(o.Host)
	if err != nil {
		return err
	}
	cfg.Logger = quiet
	p, err := builtInDrivers().Launch(ctx, compute.Kind, o.ComputeDriver, cfg)
	if err != nil {
		return err
	}
	_, err = p.Driver().Info(ctx)
	return errors.Join(err, p.Close(ctx))
}

// policyCommand has the commands about rules.
func (f *flags) policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Print a sample of all rules, check files of rules, list the rules in force, or show why a rule denies"}
	cmd.AddCommand(f.policyExplain(), &cobra.Command{
		Use: "sample", Short: "Print a file with all rules", Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return policy.Sample(f.out, api.Rules()) },
	}, &cobra.Command{
		Use: "validate", Short: "Check the files of rules: print all errors, or the rules that the files change", Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return f.listRules(true) },
	}, &cobra.Command{
		Use: "list", Short: "List the rules in force and their places", Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return f.listRules(false) },
	})
	return cmd
}

// rules returns the rules in force, and the options that they were read with.
func (f *flags) rules() (*options, *policy.Enforcer, error) {
	o, err := f.load()
	if err != nil {
		return nil, nil, err
	}
	p, err := policy.New(api.Rules(), o.policy(nil))
	return o, p, err
}

// listRules prints the rules in force. With files set, it prints only rules that come from files.
func (f *flags) listRules(files bool) error {
	_, p, err := f.rules()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
	for _, r := range p.Rules() {
		if files && r.Where == "default" {
			continue
		}
		note := ""
		if r.Redundant {
			note = " (repeats the default)"
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s%s\n", r.Name, r.Check, r.Where, note) // Flush returns the error
	}
	return w.Flush()
}

func (f *flags) policyExplain() *cobra.Command {
	var rule, token, owner string
	var c policy.Credentials
	cmd := &cobra.Command{
		Use: "explain", Short: "Show which part of a rule denies or allows a request", Args: noArguments,
		Long: "Show which part of a rule denies or allows a request. The first line ends with \"allows\" or \"denies\". " +
			"The exit code is 0 for both answers. It is 1 if there is no answer, for example because Keystone rejects the token, and 2 if the rule does not exist.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, p, err := f.rules()
			if err != nil {
				return err
			}
			var names []string
			for _, r := range p.Rules() {
				names = append(names, r.Name)
			}
			if !slices.Contains(names, rule) {
				return unknownName("rule", rule, slices.Values(names))
			}
			if token != "" {
				if c, err = o.credentialsOf(cmd.Context(), token); err != nil {
					return err
				}
			}
			var target map[string]any
			if owner != "" {
				target = map[string]any{"project_id": owner}
			}
			_, err = fmt.Fprint(f.out, p.Explain(c, rule, target))
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&rule, "rule", "", "name of the rule")
	flags.StringVar(&token, "token", "", "token of the client, which Keystone validates; without a token, the flags user, project, system and role describe the client")
	flags.StringVar(&c.UserID, "user", "", "id of the client's user")
	flags.StringVar(&c.ProjectID, "project", "", "id of the client's project")
	flags.StringVar(&c.SystemScope, "system", "", "all, for a token of the whole system")
	flags.StringSliceVar(&c.Roles, "role", nil, "the client's roles")
	flags.StringVar(&owner, "owner", "", "id of the project that owns the requested resource (default: the client's project)")
	_ = cmd.MarkFlagRequired("rule") // the flag exists
	for _, name := range []string{"user", "project", "system", "role"} {
		cmd.MarkFlagsMutuallyExclusive("token", name)
	}
	return cmd
}

// credentialsOf validates a token as the API does, and returns the client's credentials.
func (o *options) credentialsOf(ctx context.Context, token string) (policy.Credentials, error) {
	who, err := o.identity(slog.New(slog.DiscardHandler), nil) // errors are returned, not logged
	if err != nil {
		return policy.Credentials{}, err
	}
	if who.part != nil {
		defer who.part.Stop(ctx) //nolint:errcheck // it closes idle connections
	}
	r := &http.Request{Header: http.Header{auth.Header: {token}}}
	got, err := who.authenticate(r.WithContext(ctx))
	if err != nil {
		return policy.Credentials{}, fmt.Errorf("validate the token: %w", err)
	}
	return policy.From(got), nil
}

// openapiCommand prints the OpenAPI document of the REST API.
func (f *flags) openapiCommand() *cobra.Command {
	var version string
	var history bool
	cmd := &cobra.Command{
		Use: "openapi", Short: "Print the OpenAPI 3.1 document of the REST API, or what each microversion changes", Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			if history {
				return f.printHistory()
			}
			doc, err := api.OpenAPI(version)
			if err != nil {
				return err
			}
			enc := json.NewEncoder(f.out)
			enc.SetEscapeHTML(false)
			enc.SetIndent("", "  ")
			return enc.Encode(doc)
		},
	}
	cmd.Flags().StringVar(&version, "version", "2.1", "microversion")
	cmd.Flags().BoolVar(&history, "history", false, "print a table of the microversions after the first one: what each changes, and where")
	cmd.MarkFlagsMutuallyExclusive("version", "history")
	return cmd
}

// printHistory prints what each microversion changes.
func (f *flags) printHistory() error {
	w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "VERSION\tWHERE\tWHAT") // Flush returns the error
	for _, c := range api.History() {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\n", c.Version, c.Where, c.What)
	}
	return w.Flush()
}
