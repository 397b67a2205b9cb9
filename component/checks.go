package component

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/armature-go/armature/service/auth"
	"github.com/armature-go/armature/service/config"
	"github.com/armature-go/armature/service/policy"
)

// configCommand returns the command config, whose subcommands are about options.
func (t *Tool[O]) configCommand() *cobra.Command {
	var known, of []string
	for _, s := range t.r.c.Services {
		known = append(known, s.Name)
	}
	var online bool
	validate := &cobra.Command{
		Use: "validate", Args: noArguments,
		Short: "Check the configuration without the network: print all errors, or the value and the place of each option",
		RunE: func(cmd *cobra.Command, _ []string) error {
			all := append([]string{AllInOne}, known...)
			for _, s := range of {
				if !slices.Contains(all, s) {
					return unknownName("service", s, slices.Values(all))
				}
			}
			return t.validate(cmd.Context(), of, online)
		},
	}
	validate.Flags().StringSliceVar(&of, "service", known, "services that use the files; "+AllInOne+": all services in one process")
	validate.Flags().BoolVar(&online, "online", false, "also ask the message bus, the database (and check its schema), Keystone for the API's tokens, and the driver, as far as the component uses them; no other service on the network is asked")
	cmd := &cobra.Command{Use: "config", Short: "Print a sample of all options, or check a configuration"}
	cmd.AddCommand(&cobra.Command{
		Use: "sample", Short: "Print a file with all options", Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return config.Sample(t.Out, new(O), t.f.config.Defaults) },
	}, validate)
	return cmd
}

// validate prints the files that were read, and the value and the place of each option. The error has one line for each error that was
// found, even if several services have the same error.
func (t *Tool[O]) validate(ctx context.Context, of []string, online bool) error {
	if slices.Contains(of, AllInOne) {
		if err := t.r.openByDefault(t.f); err != nil {
			return err
		}
	}
	l, err := t.r.read(t.f)
	if l == nil {
		return err
	}
	for _, path := range l.config.Files() {
		t.note("read %s", path)
	}
	errs := append([]error{err}, l.placeAll(optionError("admin_listen", l.base.checkShared(of)))...)
	var wired []*Process[O]
	for _, name := range of {
		p, werr := t.tryWire(ctx, l.forService(), name, err != nil)
		if p == nil {
			errs = append(errs, werr)
			continue
		}
		wired = append(wired, p)
	}
	if online && errors.Join(errs...) == nil {
		errs = append(errs, t.askServices(ctx, l, wired))
	}
	for _, p := range wired {
		errs = append(errs, p.closeAll())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	var rows [][]string
	for _, v := range l.config.Values() {
		rows = append(rows, []string{"[" + v.Section + "]", v.Name, v.Value, v.Where})
	}
	if err := t.Print([]string{"section", "option", "value", "place"}, rows, l.config.Values()); err != nil {
		return err
	}
	t.note("valid for %s", strings.Join(of, ", "))
	return nil
}

// tryWire wires a service without starting it. The parameter wrong reports that a Validate has refused the options. Wire may then
// panic because of them. After such a panic tryWire returns nil and no error.
func (t *Tool[O]) tryWire(ctx context.Context, l *loadedOptions[O], name string, wrong bool) (p *Process[O], err error) {
	defer func() {
		if wrong {
			_ = recover()
		}
	}()
	return t.r.wire(ctx, l, name, quiet, true)
}

// note prints a line, unless the output is JSON or YAML.
func (t *Tool[O]) note(format string, args ...any) {
	if t.f.output == formatTable {
		_, _ = fmt.Fprintf(t.Out, format+"\n", args...) // the next Print returns the error
	}
}

// onlineTimeout is how long each service that an option names may take to answer.
const onlineTimeout = 10 * time.Second

// askServices checks each service on the network that the options of the processes name, each option once. The error
// has one line for each service that does not work.
func (t *Tool[O]) askServices(ctx context.Context, l *loadedOptions[O], wired []*Process[O]) error {
	var errs []error
	asked := map[string]bool{}
	for _, p := range wired {
		for _, q := range p.probes {
			if asked[q.option] {
				continue
			}
			asked[q.option] = true
			ctx, cancel := context.WithTimeout(ctx, onlineTimeout)
			if err := q.ask(ctx); err != nil {
				if len(optionsIn(err)) == 0 {
					err = optionError(q.option, err)
				}
				errs = append(errs, l.place(err))
			} else {
				section, name := splitOption(q.option)
				t.note("works: [%s] %s", section, name)
			}
			cancel()
		}
	}
	return errors.Join(errs...)
}

// policyCommand returns the command policy, whose subcommands are about rules.
func (t *Tool[O]) policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Print a sample of all rules, check files of rules, list the rules in force, or show why a rule denies"}
	cmd.AddCommand(t.explainCommand(), &cobra.Command{
		Use: "sample", Short: "Print a file with all rules", Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return policy.Sample(t.Out, t.r.c.Rules) },
	}, &cobra.Command{
		Use: "validate", Short: "Check the files of rules: print all errors, or the rules that the files change", Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return t.listRules(true) },
	}, &cobra.Command{
		Use: "list", Short: "List the rules in force and their places", Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return t.listRules(false) },
	})
	return cmd
}

// rules returns the rules in force, and the options that they were read with.
func (t *Tool[O]) rules() (*loadedOptions[O], *policy.Enforcer, error) {
	l, err := t.r.load(t.f)
	if err != nil {
		return nil, nil, err
	}
	p, err := policy.New(t.r.c.Rules, l.policy(nil))
	return l, p, err
}

// listRules prints the rules in force. With files set, it prints only rules that come from files.
func (t *Tool[O]) listRules(files bool) error {
	_, p, err := t.rules()
	if err != nil {
		return err
	}
	data := []policy.Effective{}
	var rows [][]string
	for _, r := range p.Rules() {
		if files && r.Where == "default" {
			continue
		}
		note := ""
		if r.Redundant {
			note = " (repeats the default)"
		}
		data = append(data, r)
		rows = append(rows, []string{r.Name, r.Check, r.Where + note})
	}
	return t.Print([]string{"rule", "check", "place"}, rows, data)
}

func (t *Tool[O]) explainCommand() *cobra.Command {
	var rule, token, owner string
	var c policy.Credentials
	cmd := &cobra.Command{
		Use: "explain", Short: "Show which part of a rule denies or allows a request", Args: noArguments,
		Long: "Show which part of a rule denies or allows a request. The first line ends with \"allows\" or \"denies\". " +
			"The exit code is 0 for both answers. It is 1 if there is no answer, for example because the token is rejected, and 2 if the rule does not exist.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, p, err := t.rules()
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
				if c, err = credentialsOf(cmd.Context(), findOptions[AccessOptions](l.opts), token); err != nil {
					return err
				}
			}
			var target map[string]any
			if owner != "" {
				target = map[string]any{"project_id": owner}
			}
			return t.printExplanation(p.Explain(c, rule, target))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&rule, "rule", "", "name of the rule")
	flags.StringVar(&token, "token", "", "token of the client, validated as the API validates it; without a token, the flags user, project, system and role describe the client")
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

// printExplanation prints an explanation. With --output table it prints a text.
func (t *Tool[O]) printExplanation(x *policy.Explanation) error {
	if t.f.output != formatTable {
		return t.printAs(t.f.output, x)
	}
	_, err := fmt.Fprint(t.Out, x)
	return err
}

// credentialsOf validates a token as the API does, and returns the client's credentials.
func credentialsOf(ctx context.Context, o *AccessOptions, token string) (policy.Credentials, error) {
	if o == nil {
		return policy.Credentials{}, errors.New("the component has no REST API, and so no tokens")
	}
	who, err := newIdentity(o, quiet, nil)
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
