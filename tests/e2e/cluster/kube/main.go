// Kube is a whole Kubernetes in one file: every component is a sub-command, chosen by the first
// argument or by the name under which the file is called.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

var components = map[string]func(context.Context) *cobra.Command{
	"coredns":                 func(context.Context) *cobra.Command { return newDNSCommand() },
	"etcd":                    func(context.Context) *cobra.Command { return newEtcdCommand() },
	"gpus":                    func(context.Context) *cobra.Command { return newGPUCommand() },
	"kube-apiserver":          func(context.Context) *cobra.Command { return apiserver.NewAPIServerCommand() },
	"kube-controller-manager": func(context.Context) *cobra.Command { return controllermanager.NewControllerManagerCommand() },
	"kube-proxy":              func(context.Context) *cobra.Command { return proxy.NewProxyCommand() },
	"kube-scheduler":          func(context.Context) *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kubectl":                 func(context.Context) *cobra.Command { return kubectl.NewDefaultKubectlCommand() },
	"kubelet":                 kubelet.NewKubeletCommand,
	"provisioner":             func(context.Context) *cobra.Command { return newProvisionerCommand() },
}

func main() {
	name := filepath.Base(os.Args[0])
	if components[name] == nil && len(os.Args) > 1 {
		name, os.Args = os.Args[1], os.Args[1:]
	}
	newCommand := components[name]
	if newCommand == nil {
		fmt.Fprintf(os.Stderr, "kube: error: no component %q: give one of %v\n", name, names())
		os.Exit(2)
	}
	os.Exit(cli.Run(newCommand(context.Background())))
}

func names() []string {
	all := make([]string, 0, len(components))
	for name := range components {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}
