package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/service/auth"
	"github.com/armature-go/armature/service/config"
	"github.com/armature-go/armature/service/policy"
)

// configCommand is what an operator asks about options.
func (f *flags) configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Options: a sample file, and whether a file is right"}
	cmd.AddCommand(&cobra.Command{
		Use: "sample", Short: "Print a file with all options", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return config.Sample(f.out, new(settings)) },
	}, &cobra.Command{
		Use: "validate", Short: "Say all that is wrong with the configuration, or where each option stands", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			c, err := config.Open[settings](f.source())
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
			for _, v := range c.Values() {
				_, _ = fmt.Fprintf(w, "[%s]\t%s\t%s\t%s\n", v.Section, v.Name, v.Value, v.Where) // Flush has the error
			}
			return w.Flush()
		},
	})
	return cmd
}

// policyCommand is what an operator asks about rules.
func (f *flags) policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Rules: a sample file, whether a file is right, those in force, and why one denies"}
	cmd.AddCommand(f.policyExplain(), &cobra.Command{
		Use: "sample", Short: "Print a file with all rules", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return policy.Sample(f.out, api.Rules()) },
	}, &cobra.Command{
		Use: "validate", Short: "Say all that is wrong with the files of rules, or what they change", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return f.listRules(true) },
	}, &cobra.Command{
		Use: "list", Short: "List the rules in force, and where they stand", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return f.listRules(false) },
	})
	return cmd
}

// rules returns the rules in force, and the options that say so.
func (f *flags) rules() (*options, *policy.Enforcer, error) {
	o, err := f.load()
	if err != nil {
		return nil, nil, err
	}
	p, err := policy.New(api.Rules(), o.policy(nil))
	return o, p, err
}

// listRules prints the rules in force, or those alone that files have.
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
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s%s\n", r.Name, r.Check, r.Where, note) // Flush has the error
	}
	return w.Flush()
}

func (f *flags) policyExplain() *cobra.Command {
	var rule, token, owner string
	var c policy.Credentials
	cmd := &cobra.Command{
		Use: "explain", Short: "Say which part of a rule denies or allows", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, p, err := f.rules()
			if err != nil {
				return err
			}
			if token != "" {
				if c, err = o.whose(cmd.Context(), token); err != nil {
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
	flags.StringVar(&token, "token", "", "a token, of which Keystone is asked who has it; else the flags user, project, system and role say who asks")
	flags.StringVar(&c.UserID, "user", "", "id of who asks")
	flags.StringVar(&c.ProjectID, "project", "", "id of their project")
	flags.StringVar(&c.SystemScope, "system", "", "all, for a token of the whole system")
	flags.StringSliceVar(&c.Roles, "role", nil, "their roles")
	flags.StringVar(&owner, "owner", "", "id of the project that owns what they ask for (default: their own)")
	_ = cmd.MarkFlagRequired("rule") // it is there
	for _, name := range []string{"user", "project", "system", "role"} {
		cmd.MarkFlagsMutuallyExclusive("token", name)
	}
	return cmd
}

// whose asks who has a token, as the API does.
func (o *options) whose(ctx context.Context, token string) (policy.Credentials, error) {
	who, err := o.identity(slog.New(slog.DiscardHandler)) // the error is told
	if err != nil {
		return policy.Credentials{}, err
	}
	if who.part != nil {
		defer who.part.Stop(ctx) //nolint:errcheck // it closes idle connections
	}
	r := &http.Request{Header: http.Header{auth.Header: {token}}}
	got, err := who.authenticate(r.WithContext(ctx))
	if err != nil {
		return policy.Credentials{}, fmt.Errorf("the token: %w", err)
	}
	return policy.From(got), nil
}

// openapiCommand prints what the REST API is.
func (f *flags) openapiCommand() *cobra.Command {
	var version string
	cmd := &cobra.Command{
		Use: "openapi", Short: "Print the OpenAPI 3.1 document of the REST API", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
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
	return cmd
}
